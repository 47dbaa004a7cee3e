"""MaxText as a referee: its train step under the config that autoshard exports, before XLA:TPU.

The steps are those of ``maxtext.trainers.pre_train.train_compile``, without its prints and files:
config, mesh of the slice, shapes of state and batch, the function that trains, jit, compile.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import trace_xla

from autoshard import evaluate
from autoshard.compiled import Case, Compiled
from autoshard.costmodels.model import Model
from autoshard.launch.launch import Launch

#: MaxText's names of slices, in ``utils/accelerator_to_spec_map.py``.
SLICES = {"v5p": "v5p-", "v5e": "v5litepod-", "v6e": "v6e-"}

#: MaxText's mesh axes that plans use, by the names of :func:`autoshard.launch.mesh.mesh_axes`:
#: its context axis shards the state and gathers keys and values.
AXES = {
    "stage": "stage",
    "data": "data",
    "fsdp": "fsdp",
    "context": "sequence",
    "tensor": "tensor",
}

#: What is not the plan's: nothing is loaded, saved or run.
AROUND = (
    "run_name=plan",
    "skip_jax_distributed_system=true",
    "enable_checkpointing=false",
    "dataset_type=synthetic",
)


def trace(case: Case, model: Model) -> Compiled:
    """What XLA:TPU makes of MaxText's train step under the exported config.

    Raises:
        SpecError: MaxText cannot state the plan.
        ValueError: the program's text, or the refusal, has a form that is not known here.
    """
    trace_xla.prepare()
    # As train_compile.main has them.
    os.environ["LIBTPU_INIT_ARGS"] = "--xla_tpu_spmd_rng_bit_generator_unsafe=true"
    import jax
    from maxtext.trainers.pre_train import train_compile

    jax.config.update("jax_default_prng_impl", "unsafe_rbg")
    config = _config(case, model)
    mesh = train_compile.get_topology_mesh(config)
    step = _step(config, mesh)
    return trace_xla.answer(
        case,
        lambda: train_compile.jit_and_compile(**step),
        given=step["func_input_args"],
        axes=[(AXES[name], size) for name, size in mesh.shape.items() if size > 1],
        packages=("maxtext", "jax", "jaxlib", "libtpu"),
    )


def exported(case: Case, model: Model) -> Launch:
    """The case's plan as ``autoshard export --to maxtext`` writes it.

    Raises:
        SpecError: MaxText cannot state it.
    """
    plan = case.plan
    sequences = plan.dp * plan.batch_split * plan.microbatches * plan.micro_batch_size
    judged = evaluate(
        plan,
        model,
        optimum=False,
        stack=case.stack,
        chip=case.chip,
        topology=case.topology,
        pods=plan.pods,
        global_batch_seqs=sequences,
        seq_len=case.seq_len,
    )
    return judged.plan.launch("maxtext")


def _config(case: Case, model: Model) -> Any:
    """MaxText's config: the export, and for which slice it is compiled."""
    from maxtext.configs import pyconfig

    base = Path(pyconfig.__file__).parent / "base.yml"
    flags = " ".join(f"--{name}={value}" for name, value in trace_xla.OPTIONS.items())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.yml"
        text = exported(case, model).text.replace("base.yml", str(base))
        file.write_text(text, encoding="utf-8")
        config = pyconfig.initialize(
            [
                "train_compile",
                str(file),
                *AROUND,
                f"base_output_directory={folder}",
                f"compile_topology={_slice(case)}",
                f"compile_topology_num_slices={case.plan.pods}",
                f"compile_xla_flags={flags}",
            ]
        )
    if config.num_decoder_layers != case.n_layers:
        raise ValueError(
            f"case {case.name!r}: MaxText's {case.model} has {config.num_decoder_layers} layers."
        )
    return config


def _slice(case: Case) -> str:
    """MaxText's name of the case's slice."""
    from maxtext.utils.accelerator_to_spec_map import UserFacingNameToSystemCharacteristics

    for name, slice_ in UserFacingNameToSystemCharacteristics.items():
        if name.startswith(SLICES[case.chip]) and slice_.topology_name.endswith(
            f":{case.topology}"
        ):
            return str(name)
    raise ValueError(f"case {case.name!r}: MaxText has no slice of {case.chip} {case.topology}.")


def _step(config: Any, mesh: Any) -> dict[str, Any]:
    """Arguments of MaxText's ``jit_and_compile``."""
    from flax.core.spmd import logical_axis_rules
    from maxtext.trainers.pre_train import train, train_compile
    from maxtext.utils import maxtext_utils, sharding

    given, keywords, states, _, model = train_compile.get_shaped_inputs(mesh, config)
    weights, states = sharding.maybe_update_params_sharding_with_opt(config, states)
    first = sharding.build_zero1_input_state_mesh_shardings(config, states, weights)
    batch = sharding.get_input_data_sharding(config, mesh)
    function, ins, outs, static, donated = maxtext_utils.get_functional_train_with_signature(
        train.train_step, batch, first, model, config, weights
    )
    return {
        "func": function,
        "func_input_args": given,
        "func_input_kwargs": keywords,
        "mesh": mesh,
        "in_shardings": ins,
        "out_shardings": outs,
        "static_argnums": static,
        "donate_argnums": donated,
        "config": config,
        "logical_axis_rules": logical_axis_rules(config.logical_axis_rules),
    }
