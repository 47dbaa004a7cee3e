"""Megatron-LM arguments as a plan, held to the rules of Megatron's own checks.

Rules: megatron/training/arguments.py (validate_args), core/transformer/transformer_config.py and,
for what is checked at run time alone, core/pipeline_parallel/schedules.py of Megatron-Core 0.19.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from autoshard.costmodels.checks import shown
from autoshard.costmodels.errors import SpecError
from autoshard.launch.read_megatron_stages import STAGE_FLAGS, staged
from autoshard.launch.read_plan import ReadPlan, Said, check_spelling, part, whole

#: Flags that a plan is read from.
FLAGS = (
    *STAGE_FLAGS,
    "--tensor-model-parallel-size",
    "--pipeline-model-parallel-size",
    "--context-parallel-size",
    "--cp-comm-type",
    "--microbatch-group-size-per-virtual-pipeline-stage",
    "--micro-batch-size",
    "--global-batch-size",
    "--seq-length",
    "--num-attention-heads",
    "--group-query-attention",
    "--num-query-groups",
    "--recompute-activations",
    "--recompute-granularity",
    "--recompute-method",
    "--recompute-num-layers",
    "--recompute-modules",
    "--use-distributed-optimizer",
    "--num-distributed-optimizer-instances",
    "--use-megatron-fsdp",
    "--use-torch-fsdp2",
    "--torch-fsdp2-no-reshard-after-forward",
    "--data-parallel-sharding-strategy",
    "--expert-model-parallel-size",
    "--tensor-parallel-num-weight-shards",
    "--sequence-parallel",
    "--nnodes",
    "--nproc-per-node",
)

#: Flags that are no part of a plan and look like one that is.
OTHERS = (
    "--eval-global-batch-size",
    "--eval-micro-batch-size",
    "--decoder-seq-length",
    "--encoder-seq-length",
    "--encoder-num-layers",
    "--decoder-num-layers",
    "--mtp-num-layers",
    "--expert-tensor-parallel-size",
)

#: ZeRO stages of ``--data-parallel-sharding-strategy``.
STRATEGIES = {"no_shard": None, "optim": 1, "optim_grads": 2, "optim_grads_params": 3}


def read_megatron(arguments: Sequence[str], n_layers: int | None = None) -> ReadPlan:
    """The plan of Megatron-LM arguments; ``torchrun``'s and ``WORLD_SIZE=N`` before them count.

    ``n_layers`` are those of the model, where the arguments do not say ``--num-layers``.

    Other flags are collected in ``ignored``. Without a world size, ``dp`` are the replicas of the
    sharded optimizer, and how many ranks share it is not known.

    Raises:
        SpecError: a value cannot be read, Megatron would refuse the arguments, or they ask for what
            no cost model prices.
    """
    said, ignored = _parsed(arguments)
    read = ReadPlan(
        framework="megatron",
        tp=said.number("--tensor-model-parallel-size", 1),
        pp=said.number("--pipeline-model-parallel-size", 1),
        cp=said.number("--context-parallel-size", 1),
        seq_split=1,
        seq_len=said.number("--seq-length"),
        micro_batch_size=said.number("--micro-batch-size"),
        global_batch_seqs=said.number("--global-batch-size"),
        chips=_world(said),
        ignored=tuple(ignored),
    )
    _check_unpriced(said, read)
    if (read.tp or 1) > 1 and "--sequence-parallel" not in said:
        read = replace(read, ignored=(*read.ignored, "no --sequence-parallel (priced with it)"))
    _check_attention(said, read)
    read = staged(said, _context(said, read), n_layers)
    read = _sharded(said, _batched(read))
    _check_interleaving(said, read)
    return _remat(said, read)


def _parsed(arguments: Sequence[str]) -> tuple[Said, list[str]]:
    """Flags of a plan with their words, and the names of others."""
    if arguments and not any(argument.startswith(("--", "WORLD_SIZE=")) for argument in arguments):
        raise SpecError(
            f"{shown(' '.join(arguments))} has no argument of Megatron-LM, such as "
            "--tensor-model-parallel-size 8."
        )
    said: dict[str, list[str]] = {}
    ignored: list[str] = []
    words: list[str] = []
    for argument in arguments:
        if argument.startswith("WORLD_SIZE="):
            said["WORLD_SIZE"] = [argument.partition("=")[2]]
        elif argument.endswith(".py"):
            words = []
        elif argument.startswith("--"):
            name, has_value, value = argument.partition("=")
            name = name.replace("_", "-") if name.startswith("--n") else name
            words = [value] if has_value else []
            if name in FLAGS:
                said[name] = words
            else:
                if name not in OTHERS:
                    check_spelling("Megatron", name, FLAGS)
                ignored.append(name)
        else:
            words.append(argument)
    return Said(said), ignored


def _world(said: Said) -> int | None:
    if "WORLD_SIZE" in said:
        return whole("WORLD_SIZE", said.word("WORLD_SIZE"))
    each = said.number("--nproc-per-node")
    return None if each is None else each * (said.number("--nnodes", 1) or 1)


def _check_unpriced(said: Said, read: ReadPlan) -> None:
    if (said.number("--expert-model-parallel-size", 1) or 1) > 1:
        raise SpecError("--expert-model-parallel-size: no cost model covers experts; leave it out.")
    if (said.number("--tensor-parallel-num-weight-shards", read.tp) or 1) != read.tp:
        raise SpecError(
            "--tensor-parallel-num-weight-shards: no cost model has more weight shards than TP "
            "ranks; leave it out."
        )


def _check_attention(said: Said, read: ReadPlan) -> None:
    """Heads over TP ranks, and two pieces of the sequence for each context rank."""
    heads = said.number("--num-attention-heads")
    groups = said.number("--num-query-groups", heads)
    tp, cp = read.tp or 1, read.cp or 1
    if heads is not None and heads % tp:
        raise SpecError(f"Megatron refuses this: TP {tp} does not divide {heads} heads.")
    if groups is not None and groups % tp and tp % groups:
        raise SpecError(
            f"Megatron refuses this: TP {tp} neither divides nor is a multiple of {groups} query "
            "groups."
        )
    if cp > 1 and read.seq_len is not None and read.seq_len % (2 * cp):
        raise SpecError(
            f"Megatron refuses this: --seq-length {read.seq_len} is not a multiple of twice "
            f"--context-parallel-size {cp}."
        )


def _context(said: Said, read: ReadPlan) -> ReadPlan:
    """Context ranks that gather keys and values are ``seq_split``; those that ring are ``cp``."""
    if read.cp == 1 or "--cp-comm-type" not in said:
        return read
    kinds = {word.replace("_", "").lower() for word in said.words["--cp-comm-type"]}
    if kinds == {"p2p"}:
        return read
    if kinds == {"allgather"}:
        return replace(read, cp=1, seq_split=read.cp)
    raise SpecError(
        f"--cp-comm-type {' '.join(sorted(kinds))}: priced are p2p and all_gather, for all layers "
        "the same."
    )


def _batched(read: ReadPlan) -> ReadPlan:
    """Data ranks (in ``dp`` for now) and microbatches, as far as the world is known."""
    if read.chips is None:
        return read
    model = (read.tp or 1) * (read.pp or 1) * (read.cp or 1) * (read.seq_split or 1)
    data = part(
        read.chips,
        model,
        f"Megatron refuses this: the world of {read.chips} is no multiple of TP x PP x CP {model}.",
    )
    read = replace(read, dp=data)
    if read.micro_batch_size is None:
        return read
    once = read.micro_batch_size * data
    batch = once if read.global_batch_seqs is None else read.global_batch_seqs
    many = part(
        batch,
        once,
        f"Megatron refuses this: --global-batch-size {batch} is no multiple of --micro-batch-size "
        f"{read.micro_batch_size} x {data} data ranks.",
    )
    return replace(read, global_batch_seqs=batch, microbatches=many)


def _sharded(said: Said, read: ReadPlan) -> ReadPlan:
    """The ZeRO stage, the ranks that share the state, and replicas of those."""
    fsdp2, megatron = "--use-torch-fsdp2" in said, "--use-megatron-fsdp" in said
    zero: int | None = 1 if "--use-distributed-optimizer" in said else None
    if fsdp2 and megatron:
        raise SpecError("Megatron takes one of --use-torch-fsdp2 and --use-megatron-fsdp.")
    if fsdp2:
        if (read.pp or 1) > 1 or zero:
            raise SpecError("--use-torch-fsdp2 goes with neither PP nor the distributed optimizer.")
        zero = 2 if "--torch-fsdp2-no-reshard-after-forward" in said else 3
    if megatron:
        flag = "--data-parallel-sharding-strategy"
        strategy = said.word(flag) if flag in said else "optim_grads_params"
        if strategy not in STRATEGIES:
            raise SpecError(f"{flag} {strategy!r}: known are {', '.join(STRATEGIES)}.")
        zero = STRATEGIES[strategy]
    split = read.seq_split or 1
    if zero is None:
        if split > 1:
            raise SpecError(
                "context ranks that gather keys and values share the optimizer in what is priced; "
                "add --use-distributed-optimizer."
            )
        return replace(read, fsdp=1)
    copies = said.number("--num-distributed-optimizer-instances", 1) or 1
    if read.dp is None:
        return replace(read, reshard=zero, dp=copies)
    shards = part(
        read.dp,
        copies,
        f"--num-distributed-optimizer-instances {copies} does not divide {read.dp} data ranks.",
    )
    return replace(read, reshard=zero, dp=copies, fsdp=shards * split)


def _check_interleaving(said: Said, read: ReadPlan) -> None:
    """What the interleaved schedule asserts when it runs."""
    many, pp = read.microbatches, read.pp or 1
    if (read.vpp or 1) == 1 or many is None:
        return
    group = said.number("--microbatch-group-size-per-virtual-pipeline-stage", pp) or pp
    if not pp <= group <= many or (many % group and many % group < pp):
        raise SpecError(
            f"Megatron would stop at its first step: interleaving runs groups of {group} "
            f"microbatches, of {pp} at least, and there are {many}."
        )


def _remat(said: Said, read: ReadPlan) -> ReadPlan:
    """A rung of Megatron's ladder, and the layers of a chunk where that is not all."""
    flag = "--recompute-granularity"
    kind = "selective" if "--recompute-activations" in said else None
    kind = said.word(flag) if flag in said else kind
    method = said.word("--recompute-method") if "--recompute-method" in said else None
    count = said.number("--recompute-num-layers")
    if kind is None:
        return replace(read, remat="none")
    if kind == "selective":
        if method is not None or count is not None:
            raise SpecError("selective recomputation takes no --recompute-method or -num-layers.")
        modules = said.words.get("--recompute-modules", ["core_attn"])
        if modules != ["core_attn"]:
            raise SpecError(f"--recompute-modules {' '.join(modules)}: priced is core_attn alone.")
        return replace(read, remat="selective")
    if kind != "full":
        raise SpecError(f"{flag} {kind!r}: known are full and selective.")
    if method not in ("block", "uniform") or count is None:
        raise SpecError(
            "full recomputation wants --recompute-method block or uniform, and "
            "--recompute-num-layers."
        )
    if method == "uniform":
        if count > 1:
            raise SpecError(
                f"--recompute-method uniform over groups of {count} layers is not priced; "
                "--recompute-num-layers 1 is."
            )
        return replace(read, remat="full")
    if read.layers_per_stage is not None and count * (read.vpp or 1) >= max(read.layers_per_stage):
        return replace(read, remat="full")  # Megatron takes more than a chunk has
    return replace(read, remat="full", remat_layers_per_chunk=count)
