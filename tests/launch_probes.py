"""Configs that frameworks accept or refuse: the tables of their rules, one probe a row.

``accepted`` is what the framework's own check says (test_launch_validators.py asks it where it is
installed) and ``read`` what autoshard says: stricter where the check comes only when training runs.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Arguments after a base, on a world of so many ranks."""

    given: str
    world: int
    accepted: bool
    read: bool | None = None
    model: str = "llama3-405b"

    @property
    def readable(self) -> bool:
        return self.accepted if self.read is None else self.read


def yes(given: str, world: int, model: str = "llama3-405b") -> Probe:
    return Probe(given=given, world=world, accepted=True, model=model)


def no(given: str, world: int, model: str = "llama3-405b") -> Probe:
    return Probe(given=given, world=world, accepted=False, model=model)


_TP8 = "--tensor-model-parallel-size 8 --sequence-parallel"
_PIPE = f"{_TP8} --pipeline-model-parallel-size 16 --global-batch-size 512"
_LAYOUT = f"{_PIPE} --pipeline-model-parallel-layout"
_70B = f"{_TP8} --pipeline-model-parallel-size 4 --global-batch-size 64"
_FULL = "--recompute-granularity full"

#: Megatron-Core 0.19.2. Of 405B unless said: 126 layers, 128 heads, 8 query groups, 8,192 tokens.
MEGATRON: dict[str, Probe] = {
    "world is a multiple of the model": yes(f"{_TP8} --global-batch-size 1024", 8192),
    "world is none": no(f"{_TP8} --global-batch-size 1024", 8191),
    "even stages": yes(_70B, 32, model="llama3-70b"),
    "126 layers on 16 stages": no(_PIPE, 128),
    "embedding and loss count": yes(
        f"{_PIPE} --account-for-embedding-in-pipeline-split --account-for-loss-in-pipeline-split",
        128,
    ),
    "ends of 7": yes(
        f"{_PIPE} --decoder-first-pipeline-num-layers 7 --decoder-last-pipeline-num-layers 7", 128
    ),
    "ends of 6": no(
        f"{_PIPE} --decoder-first-pipeline-num-layers 6 --decoder-last-pipeline-num-layers 6", 128
    ),
    "one layer a chunk": yes(
        f"{_70B} --num-layers-per-virtual-pipeline-stage 1", 32, model="llama3-70b"
    ),
    "three layers a chunk": no(
        f"{_70B} --num-layers-per-virtual-pipeline-stage 3", 32, model="llama3-70b"
    ),
    "five chunks": yes(f"{_70B} --num-virtual-stages-per-pipeline-rank 5", 32, model="llama3-70b"),
    # Megatron finds out when it builds the chunks (transformer_block.py, get_num_layers_to_build).
    "three chunks": Probe(
        given=f"{_70B} --num-virtual-stages-per-pipeline-rank 3",
        world=32,
        accepted=True,
        read=False,
        model="llama3-70b",
    ),
    "layout": yes(f"{_LAYOUT} Et*7|(tttttttt|)*14tttttttL", 128),
    "layout of groups": yes(f"{_LAYOUT} Et*7|(t*8|)*14t*7L", 128),
    "layout with commas": yes(f"{_LAYOUT} E,t*7|(t*8|)*14,t*7,L", 128),
    "layout of empty ends": yes(f"{_LAYOUT} E|(t*9|)*14L", 128),
    "layout of 17 stages": no(f"{_LAYOUT} Et*7|(t*8|)*14t*6|tL", 128),
    "layout of 125 layers": no(f"{_LAYOUT} Et*7|(t*8|)*14t*6L", 128),
    "layout without loss": no(f"{_LAYOUT} Et*7|(t*8|)*14t*7", 128),
    "layout of other letters": no(f"{_LAYOUT} Et*7|(x*8|)*14t*7L", 128),
    "layout of two chunks": yes(f"{_LAYOUT} Et*3|(t*4|)*30t*3L", 128),
    "layout and virtual stages": no(
        f"{_LAYOUT} Et*7|(t*8|)*14t*7L --num-virtual-stages-per-pipeline-rank 2", 128
    ),
    # And this when the schedule starts (pipeline_parallel/schedules.py).
    "fewer microbatches than stages": Probe(
        given=f"{_TP8} --pipeline-model-parallel-size 4 --num-virtual-stages-per-pipeline-rank 5 "
        "--global-batch-size 3",
        world=32,
        accepted=True,
        read=False,
        model="llama3-70b",
    ),
    "three do not divide the heads": no("--tensor-model-parallel-size 3 --global-batch-size 3", 3),
    "more TP than query groups": yes(
        "--tensor-model-parallel-size 16 --sequence-parallel --global-batch-size 4", 16
    ),
    "context of two": yes(f"{_TP8} --context-parallel-size 2 --global-batch-size 4", 16),
    "context of six": no(f"{_TP8} --context-parallel-size 6 --global-batch-size 4", 48),
    "batch is no multiple": no(f"{_TP8} --global-batch-size 100", 128),
    "full without a method": no(f"{_TP8} --global-batch-size 16 {_FULL}", 128),
    "full without layers": no(
        f"{_TP8} --global-batch-size 16 {_FULL} --recompute-method block", 128
    ),
    "full in blocks": yes(
        f"{_TP8} --global-batch-size 16 {_FULL} --recompute-method block --recompute-num-layers 5",
        128,
    ),
    "more layers than there are": yes(
        f"{_70B} {_FULL} --recompute-method block --recompute-num-layers 99",
        32,
        model="llama3-70b",
    ),
    "selective": yes(f"{_TP8} --global-batch-size 16 --recompute-granularity selective", 128),
    "selective in blocks": no(
        f"{_TP8} --global-batch-size 16 --recompute-granularity selective --recompute-method block",
        128,
    ),
    "selective with layers": no(
        f"{_TP8} --global-batch-size 16 --recompute-granularity selective --recompute-num-layers 2",
        128,
    ),
    "FSDP2 with a pipeline": no(
        "--pipeline-model-parallel-size 2 --use-torch-fsdp2 --global-batch-size 4 "
        "--ckpt-format torch_dist",
        8,
    ),
    "FSDP2 with the distributed optimizer": no(
        "--use-torch-fsdp2 --use-distributed-optimizer --global-batch-size 8 "
        "--ckpt-format torch_dist",
        8,
    ),
    "Megatron FSDP": yes(
        "--use-megatron-fsdp --data-parallel-sharding-strategy optim_grads_params "
        "--ckpt-format fsdp_dtensor --global-batch-size 8",
        8,
    ),
    "experts in a dense model": no("--expert-model-parallel-size 2 --global-batch-size 8", 8),
}

#: torchtitan 0.3.0 of LLaMA-3 70B: 80 layers, 64 heads, 8 KV heads. What ``ConfigManager`` and
#: ``ParallelDims`` judge; heads are the model's business and no part of the config.
TORCHTITAN: dict[str, tuple[str, int, bool]] = {
    "product is the world": (
        "--parallelism.data_parallel_shard_degree 8 --parallelism.tensor_parallel_degree 8",
        64,
        True,
    ),
    "product is not the world": (
        "--parallelism.data_parallel_shard_degree 8 --parallelism.tensor_parallel_degree 4",
        64,
        False,
    ),
    "rest of the world": (
        "--parallelism.data_parallel_shard_degree -1 --parallelism.tensor_parallel_degree 4",
        64,
        True,
    ),
}

_SLICE = "compile_topology=v5p-1024 ici_tensor_parallelism=8"
_STAGES = f"{_SLICE} ici_pipeline_parallelism=4 base_num_decoder_layers"

#: MaxText 0.2.5 on 512 v5p: keys, and whether it trains.
MAXTEXT: dict[str, tuple[str, bool]] = {
    "fsdp fills the slice": (f"{_SLICE} ici_fsdp_parallelism=-1", True),
    "64 and 8": (f"{_SLICE} ici_fsdp_parallelism=64", True),
    "64 and 7": (
        "compile_topology=v5p-1024 ici_tensor_parallelism=7 ici_fsdp_parallelism=64",
        False,
    ),
    "four slices of eight": (
        f"{_SLICE} compile_topology_num_slices=8 dcn_data_parallelism=4",
        False,
    ),
    "two axes of the rest": (f"{_SLICE} ici_data_parallelism=-1", False),
    "126 layers on 4 stages": (f"{_STAGES}=126", False),
    "80 layers on 4 stages": (f"{_STAGES}=80", True),
    "3 microbatches on 4 stages": (f"{_STAGES}=80 num_pipeline_microbatches=3", False),
    "8 microbatches on 4 stages": (
        f"{_STAGES}=80 num_pipeline_microbatches=8 per_device_batch_size=0.25",
        True,
    ),
    "unknown axis": (f"{_SLICE} ici_tensors_parallelism=2", False),
    "bogus policy": (f"{_SLICE} remat_policy=bogus", False),
    "no such topology": ("compile_topology=pod ici_tensor_parallelism=8", False),
}
