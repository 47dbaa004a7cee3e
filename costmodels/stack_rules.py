"""The rules of each framework, as tables: what its own checks refuse, with where they are.

Sources are named as the files call themselves. Read in 2026: Megatron-Core 0.19.2, torchtitan
0.3.0, MaxText 0.2.5, nanotron and llm-foundry at their heads, Megatron-LM as of 2021.

What each calls context parallelism differs. PyTorch and MaxText shard weights over the context
ranks too and gather keys and values, which is ``seq_split`` here; Megatron keeps weights whole
there and rings keys and values, which is ``cp``, or gathers them (``--cp-comm-type all_gather``).

A TPU mesh axis has to be a product of whole dimensions of the torus unless MaxText's
``allow_split_physical_axes`` is set, and its mesh takes every chip of a slice: a flag and a smaller
slice state such a plan, so neither is a rule.
"""

from __future__ import annotations

import numpy as np

from autoshard.costmodels.legality import Legality, Rule

_HEADS = Rule(
    name="heads",
    sentence="tp = {tp} does not divide {model.n_heads} heads",
    source="every framework splits attention by heads",
    allows=lambda p, c: p.model.n_heads % c.tp == 0,
)
_HEADS_OR_COPIES = Rule(
    name="kv_heads",
    sentence="tp = {tp} neither divides nor is a multiple of {model.n_kv_heads} KV heads",
    source="megatron/core/transformer/transformer_config.py, TransformerConfig.__post_init__",
    allows=lambda p, c: (p.model.n_kv_heads % c.tp == 0) | (c.tp % p.model.n_kv_heads == 0),
)


def _kv_heads(source: str) -> Rule:
    """KV heads are split and never copied."""
    return Rule(
        name="kv_heads",
        sentence="tp = {tp} does not divide {model.n_kv_heads} KV heads",
        source=source,
        allows=lambda p, c: p.model.n_kv_heads % c.tp == 0,
    )


def _stays_one(degree: str, lacks: str, source: str, *, late: bool = False) -> Rule:
    """A degree that the framework does not have."""
    return Rule(
        name=f"no_{degree}",
        sentence=f"{degree} = {{{degree}}}, and {lacks}",
        source=source,
        allows=lambda p, c: getattr(c, degree) == 1,
        late=late,
    )


def _zero(stages: tuple[int, ...], source: str) -> Rule:
    """The ZeRO stages that the framework has; all are one where nothing is sharded."""
    return Rule(
        name="reshard",
        sentence=f"ZeRO-{{reshard}} over {{fsdp}} shards, and there is only "
        f"{' and '.join(f'ZeRO-{stage}' for stage in stages)}",
        source=source,
        allows=lambda p, c: np.isin(c.reshard, stages) | (c.fsdp == 1),
    )


def _halves(source: str) -> Rule:
    """A causal mask is dealt in two pieces a rank."""
    return Rule(
        name="context_halves",
        sentence="{workload.seq_len} tokens are not two pieces for each of "
        "seq_split * cp = {seq_split} * {cp} ranks",
        source=source,
        allows=lambda p, c: (
            (c.seq_split * c.cp == 1) | (p.workload.seq_len % (2 * c.seq_split * c.cp) == 0)
        ),
    )


def _one_exchange(source: str) -> Rule:
    """Keys and values are rung or gathered."""
    return Rule(
        name="one_context",
        sentence="seq_split = {seq_split} gathers keys and values and cp = {cp} rings them, and "
        "all context ranks do the same",
        source=source,
        allows=lambda p, c: (c.seq_split == 1) | (c.cp == 1),
    )


def _interleaved(source: str) -> Rule:
    """Interleaved 1F1B runs microbatches in rounds of as many as stages."""
    return Rule(
        name="interleaving",
        sentence="vpp = {vpp} wants pipeline stages and microbatches in rounds of pp = {pp}, and "
        "there are {microbatches}",
        source=source,
        allows=lambda p, c: (c.vpp == 1) | ((c.pp > 1) & (c.microbatches % c.pp == 0)),
        late=True,
    )


def _equal_chunks(source: str) -> tuple[Rule, Rule]:
    """Layers are dealt evenly: a rule on the mesh, and one on its virtual stages."""
    return (
        Rule(
            name="equal_stages",
            sentence="pp = {pp} does not divide {model.n_layers} layers",
            source=source,
            allows=lambda p, c: p.model.n_layers % c.pp == 0,
        ),
        Rule(
            name="equal_chunks",
            sentence="pp * vpp = {pp} * {vpp} does not divide {model.n_layers} layers",
            source=source,
            allows=lambda p, c: p.model.n_layers % (c.pp * c.vpp) == 0,
            late=True,
        ),
    )


def _counted_chunks(layers: str, ends: str) -> tuple[Rule, Rule]:
    """The same, or one layer less on the first and the last stage, which have the embeddings."""
    return (
        Rule(
            name="equal_stages",
            sentence="pp = {pp} divides neither {model.n_layers} layers nor, with both embeddings, "
            "two more",
            source=f"{layers}; {ends}",
            allows=lambda p, c: (
                (p.model.n_layers % c.pp == 0) | ((p.model.n_layers + 2) % c.pp == 0)
            ),
        ),
        Rule(
            name="equal_chunks",
            sentence="pp * vpp = {pp} * {vpp} does not divide {model.n_layers} layers",
            source=f"{layers}; DeepSpeed's pipeline has no virtual stages",
            allows=lambda p, c: (c.vpp == 1) | (p.model.n_layers % (c.pp * c.vpp) == 0),
            late=True,
        ),
    )


_MEGATRON_ARGUMENTS = "megatron/training/arguments.py, validate_args"

MEGATRON = Legality(
    framework="Megatron-Core",
    rules=(
        _HEADS,
        _HEADS_OR_COPIES,
        _halves(f"{_MEGATRON_ARGUMENTS}: seq_length % (2 * context_parallel_size) == 0"),
        _one_exchange("megatron/core/transformer/transformer_config.py, cp_comm_type"),
        _interleaved("megatron/core/pipeline_parallel/schedules.py, checked at run time only"),
    ),
    remat="one-count",
    stage_source="megatron/core/recompute.py: --recompute-num-layers is one number for every model "
    "chunk; uneven stages by --pipeline-model-parallel-layout",
)

MEGATRON_2021 = Legality(
    framework="Megatron-LM of 2021",
    rules=(
        _HEADS,
        _HEADS_OR_COPIES,
        _stays_one("seq_split", "it splits no sequence", "Megatron-LM v2.5, megatron/arguments.py"),
        _stays_one(
            "cp", "it has no context parallelism", "Megatron-LM v2.5, megatron/arguments.py"
        ),
        _zero((1,), "Megatron-LM v2.5, megatron/optimizer; DeepSpeed's ZeRO-1"),
        _interleaved("Megatron-LM v2.5, megatron/schedules.py"),
        *_counted_chunks(
            "Megatron-LM v2.5, megatron/model/transformer.py: num_layers % pp == 0",
            # BLOOM: 70 layers and 2 embeddings on 12 stages.
            "Megatron-DeepSpeed, --pp-partition-method type:transformer|embedding",
        ),
    ),
    remat="one-count",
    equal_stages=True,
    counted_ends=True,
    stage_source="Megatron-LM v2.5, --activations-checkpoint-method block",
)

TORCHTITAN = Legality(
    framework="torchtitan",
    rules=(
        _HEADS,
        _kv_heads("torchtitan/models/llama3, update_from_config: n_kv_heads % tp == 0"),
        _stays_one(
            "cp",
            "its context ranks shard the weights too, which is seq_split",
            "torchtitan/distributed/parallel_dims.py: dp_shard_cp is the mesh of FSDP",
        ),
        Rule(
            name="context_halves",
            sentence="{workload.seq_len} tokens are not two pieces for each of "
            "tp * seq_split = {tp} * {seq_split} ranks",
            source="torchtitan/distributed/parallel_dims.py, seq_len_divisor",
            allows=lambda p, c: (
                (c.seq_split == 1) | (p.workload.seq_len % (2 * c.tp * c.seq_split) == 0)
            ),
        ),
        _zero((2, 3), "torchtitan: fsdp_reshard_after_forward = never, always"),
        Rule(
            name="enough_microbatches",
            sentence="pp = {pp} stages want as many microbatches, and there are {microbatches}",
            source="torch/distributed/pipelining/schedules.py, PipelineScheduleSingle",
            allows=lambda p, c: c.microbatches >= c.pp,
            late=True,
        ),
        _interleaved("torch/distributed/pipelining/schedules.py, ScheduleInterleaved1F1B"),
    ),
    remat="one-policy",
    stage_source="torchtitan activation_checkpoint.mode: none, selective or full for all layers; "
    "uneven stages by module_fqns_per_model_part",
)

LLM_FOUNDRY = Legality(
    framework="llm-foundry",
    rules=(
        *(
            _stays_one(degree, "it has FSDP alone", "llm-foundry, fsdp_config")
            for degree in ("tp", "pp", "cp", "seq_split")
        ),
        _stays_one("vpp", "it has FSDP alone", "llm-foundry, fsdp_config", late=True),
        _zero((2, 3), "composer: sharding_strategy SHARD_GRAD_OP, FULL_SHARD"),
    ),
    # Without stages, what one stage can be is what llm-foundry can state.
    stage_source="llmfoundry/models/utils/act_ckpt.py: activation_checkpointing_target, first-n",
)

NANOTRON = Legality(
    framework="nanotron",
    rules=(
        _HEADS,
        _kv_heads("nanotron/models/llama.py: num_key_value_heads % tp == 0"),
        _halves("nanotron/nn/ring_attention.py: zigzag"),
        _one_exchange("nanotron, config/models_config.py: one attention implementation"),
        _zero((1,), "nanotron, config: zero_stage 0 or 1"),
        _stays_one(
            "vpp",
            "its pipeline engines are 1f1b and afab",
            "nanotron/parallel/pipeline_parallel/engine.py",
            late=True,
        ),
        # Blocks go to stages by their cost, and nobody can choose. One that passes a threshold
        # still stays, so that the first stage has one more and the last one fewer for the head:
        # 11, 10 on six and 9 of 80 layers on 8. Equal stages stand for that here.
        *_equal_chunks("nanotron/models/base.py, build_model"),
    ),
    remat="one-policy",
    equal_stages=True,
    missing_rungs=("selective",),
    stage_source="nanotron, config/parallelism_config.py: recompute_layer is on or off",
)

MAXTEXT = Legality(
    framework="MaxText",
    rules=(
        _HEADS,
        _kv_heads("maxtext/configs/base.yml, logical_axis_rules; JAX splits evenly or refuses"),
        _stays_one(
            "cp",
            "its context axis shards the weights too, which is seq_split",
            "maxtext/configs/base.yml, logical_axis_rules of embed",
        ),
        Rule(
            name="even_shards",
            sentence="fsdp = {fsdp} does not divide d_model = {model.d_model}",
            source="maxtext/configs/base.yml, logical_axis_rules of embed: fsdp and context shard "
            "d_model; jax refuses uneven shards of arguments (IndivisibleError)",
            allows=lambda p, c: (
                (c.reshard == 1) | (p.model.d_model % (c.batch_split * c.seq_split) == 0)
            ),
        ),
        _halves("maxtext/configs: context_parallel_load_balance"),
        _zero((1, 3), "maxtext/configs/base.yml: shard_optimizer_over_data, or FSDP"),
        *_equal_chunks("maxtext/configs/pyconfig.py: stages * layers * repeats"),
        Rule(
            name="pipeline_microbatches",
            sentence="{microbatches} microbatches are not whole rounds of pp = {pp}",
            source="maxtext/configs/pyconfig.py: num_pipeline_microbatches % stages == 0",
            allows=lambda p, c: c.microbatches % c.pp == 0,
            late=True,
        ),
    ),
    remat="one-policy",
    equal_stages=True,
    # remat_policy=none wraps every layer like the others, with no policy: that is full.
    missing_rungs=("none",),
    split_axes_flag="allow_split_physical_axes=true",
    stage_source="maxtext/layers/decoders.py, set_remat_policy: one policy for scanned layers",
)
