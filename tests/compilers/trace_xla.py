"""XLA:TPU as a referee: compiles a case ahead of time, on a CPU, and says what came of it.

libtpu, an optional extra under the terms of Google's cloud platform, brings the compiler; no TPU is
there. What the program needs comes from ``memory_analysis()``, or, where it does not fit, from the
compiler's refusal. Collective matmuls ("windowed einsum") are off: they send the same bytes as
permutations in a loop, which would hide what they stand for.
"""

from __future__ import annotations

import datetime
import math
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

from hlo import read_collectives

from autoshard.compiled import Case, Compiled
from autoshard.costmodels.model import Model
from autoshard.costmodels.stack import stack_by_name

#: What the compiler is asked for beside its defaults.
OPTIONS = {
    "xla_tpu_enable_windowed_einsum_for_all_gather": "false",
    "xla_tpu_enable_windowed_einsum_for_reduce_scatter": "false",
}
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "": 1}
_AXES = ("stage", "data", "fsdp", "sequence", "context", "tensor")


def prepare() -> None:
    """Tell libtpu that there is no TPU; before JAX is imported."""
    import libtpu

    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_LIBRARY_PATH", libtpu.get_library_path())


def trace(case: Case, model: Model) -> Compiled:
    """What XLA:TPU makes of a case, with the model cut to its layers.

    Raises:
        ValueError: the program's text, or the refusal, has a form that is not known here.
    """
    prepare()
    import llama_jax

    mesh = _mesh(case)
    return answer(
        case,
        lambda: lower(case, model, mesh).compile(compiler_options=OPTIONS),
        given=llama_jax.arguments(model, case.plan, case.seq_len, mesh),
        axes=tuple(zip(_AXES, mesh.devices.shape, strict=True)),
        packages=("jax", "jaxlib", "libtpu"),
    )


def answer(
    case: Case,
    compile_step: Callable[[], Any],
    *,
    given: Any,
    axes: Sequence[tuple[str, int]],
    packages: Sequence[str],
) -> Compiled:
    """The compiler's answer about a case: a program, or that it does not fit.

    ``given`` is a tree of the shapes and shardings of what the step is given, ``axes`` those of the
    mesh, ``packages`` what made the program.

    Raises:
        ValueError: the program's text, or the refusal, has a form that is not known here.
    """
    import jax

    said: dict[str, Any] = {
        "case": case,
        "limit_bytes": int(LIMIT_BYTES[case.chip]),
        "versions": {name: version(name) for name in packages},
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
    }
    try:
        program = compile_step()
    except jax.errors.JaxRuntimeError as error:
        arguments = given_bytes(given)
        return Compiled(
            argument_bytes=arguments,
            temporary_bytes=None,
            peak_bytes=refused_bytes(str(error), arguments),
            fits=False,
            collectives=(),
            **said,
        )
    memory = program.memory_analysis()
    # The output takes the place of the state that it follows, but for the loss and other metrics.
    beside = memory.output_size_in_bytes - memory.alias_size_in_bytes
    code = memory.generated_code_size_in_bytes
    return Compiled(
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        peak_bytes=memory.argument_size_in_bytes + memory.temp_size_in_bytes + beside + code,
        fits=True,
        collectives=read_collectives(program.as_text(), axes),
        notes=(f"the program itself takes {code:,} bytes",),
        **said,
    )


def _mesh(case: Case) -> Any:
    from jax.experimental import topologies

    from autoshard.launch.mesh import jax_mesh

    slices = {"num_slices": case.plan.pods} if case.plan.pods > 1 else {}
    topology = topologies.get_topology_desc(f"{case.chip}:{case.topology}", "tpu", **slices)
    return jax_mesh(case.plan, topology.devices)


def lower(case: Case, model: Model, mesh: Any) -> Any:
    """The step of a case, traced but not compiled."""
    import jax
    import llama_jax

    plan = case.plan
    ladder = {rung.name: rung for rung in stack_by_name(case.stack).ladder}
    state, tokens = llama_jax.arguments(model, plan, case.seq_len, mesh)
    run = partial(llama_jax.step, model=model, plan=plan, ladder=ladder, mesh=mesh)
    shardings = jax.tree.map(lambda array: array.sharding, state)
    return jax.jit(run, donate_argnums=0, out_shardings=(shardings, None)).lower(state, tokens)


def given_bytes(given: Any) -> int:
    """Bytes on one chip of what a step is given; XLA drops those never read."""
    import jax

    return sum(
        math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize
        for array in jax.tree.leaves(given)
    )


#: Bytes that XLA:TPU lets a program have, as its refusals name them.
LIMIT_BYTES = {"v5p": 95.73 * 2**30, "v5e": 15.75 * 2**30, "v6e": 31.25 * 2**30}


def refused_bytes(message: str, argument_bytes: int) -> int:
    """Bytes that a refused program would take.

    An early refusal estimates temporaries alone, before XLA tries to do with less.

    Raises:
        ValueError: it was refused for another reason.
    """
    if found := re.search(r"HLO temporaries \(([\d.]+)([KMG]?)\) exceeds", message):
        return argument_bytes + int(float(found.group(1)) * _UNITS[found.group(2)])
    if found := re.search(r"Used ([\d.]+)([KMG]?) of [\d.]+[KMG]? hbm", message):
        return int(float(found.group(1)) * _UNITS[found.group(2)])
    raise ValueError(f"no refusal for want of memory: {message[:2000]}")
