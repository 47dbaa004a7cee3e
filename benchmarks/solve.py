"""Where the time of ``autoshard solve`` goes: medians of fresh processes, start-up included.

Run it as ``python benchmarks/solve.py [runs]``: a full proven front of 20 points for each case, how
the time grows with the cluster, and what a plain numpy enumeration of uniform plans takes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time

LLAMA = ("--model", "llama3-405b", "--chip", "h100")
CASES = {
    "70B, v5p pod": ["--model", "llama3-70b", "--pods", "1"],
    "405B, 8 pods": ["--model", "llama3-405b", "--pods", "8"],
    "405B, H100": [
        *LLAMA,
        "--chips",
        "16384",
        "--global-batch-tokens",
        "16Mi",
        "--seq-len",
        "8192",
    ],
    "131,072 long": [
        *(*LLAMA, "--chips", "16384", "--global-batch-tokens", "16Mi", "--seq-len", "131072"),
    ],
    "GPT-3, H100": [
        *("--model", "gpt3-175b", "--chip", "h100", "--chips", "4096", "--seq-len", "2048"),
        *("--global-batch-seqs", "1536"),
    ],
    "1,000,000": [
        *(*LLAMA, "--chips", "1000000", "--global-batch-tokens", "64Mi", "--seq-len", "8192"),
    ],
    "H100, megatron": [
        *(*LLAMA, "--chips", "16384", "--global-batch-tokens", "16Mi", "--seq-len", "8192"),
        *("--stack", "megatron"),
    ],
}
STEPS = (
    "space",
    "costs of meshes",
    "costs of candidates",
    "bounds",
    "stages",
    "CP-SAT",
    "front",
    "judge",
    "without the stack's rules",
)
COUNTS = ("meshes", "priced", "rows", "answers", "solves")
#: Chips of the growing cluster: 405B, 16Mi tokens.
GROWTH = (64, 256, 1024, 4096, 16_384, 65_536, 262_144, 1_048_576)


def run(arguments: list[str]) -> dict[str, float]:
    """Seconds of one solve in a new process by step, its counts, and its peak of memory."""
    command = [sys.executable, "-m", "autoshard", "solve", "--json", "--points", "20", *arguments]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as solving:
        said = solving.stdout.read() if solving.stdout else b""
        _, status, used = os.wait4(solving.pid, 0)
        solving.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - started
    if solving.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {solving.returncode}")
    search = json.loads(said)["search"]
    spent = {step: search["seconds"].get(step, 0.0) for step in STEPS}
    counted = {name: float(search[name]) for name in COUNTS}
    return {
        "wall": wall,
        "start-up": wall - sum(spent.values()),
        **spent,
        **counted,
        "candidates/s": (counted["meshes"] + counted["priced"]) / wall,
        "peak MiB": used.ru_maxrss / 1024,
    }


def cases(runs: int) -> None:
    """One column a case, one line a step."""
    columns = {}
    for name, arguments in CASES.items():
        samples = [run(arguments) for _ in range(runs)]
        columns[name] = {key: statistics.median(s[key] for s in samples) for key in samples[0]}
    print(f"{f'20 points, median of {runs}':24}" + "".join(f"{n:>16}" for n in columns))
    for key in next(iter(columns.values())):
        form = "{:>16,.0f}" if key in (*COUNTS, "candidates/s", "peak MiB") else "{:>16.2f}"
        print(f"{key:24}" + "".join(form.format(column[key]) for column in columns.values()))


def growth() -> None:
    """How the time grows with the cluster."""
    print("\nchips       wall s   meshes")
    for chips in GROWTH:
        found = run([*LLAMA, "--chips", str(chips), "--global-batch-tokens", "16Mi"])
        print(f"{chips:<10,}{found['wall']:8.2f}{found['meshes']:9,.0f}")


def uniform() -> None:
    """What pricing every candidate takes, for uniform plans alone: no front of them is proven."""
    import numpy as np

    from autoshard.costmodels.textbook import textbook
    from autoshard.search import bounds
    from autoshard.search.blocks import expansions, mesh_blocks
    from autoshard.search.prune import Staircase
    from autoshard.search.rows import chunks, price_rows
    from autoshard.solving import build_problem

    profile = textbook()
    print("\nnumpy, every uniform plan       wall s  candidates")
    for name, question in {
        "405B, 8 pods": {"pods": 8},
        "405B, H100": {"chip": "h100", "chips": 16384, "global_batch_tokens": 2**24},
    }.items():
        problem = build_problem("llama3-405b", **question)  # type: ignore[arg-type]
        started, count, stairs = time.perf_counter(), 0, Staircase()
        for table in mesh_blocks(problem):
            for candidates, _ in expansions(problem, table):
                for piece in chunks(candidates):
                    seconds, size = bounds.uniform_plans(price_rows(problem, profile, piece))
                    stairs.add(np.where(size <= problem.capacity_bytes, seconds, np.inf), size)
                    count += len(piece)
        print(f"{name:24}{time.perf_counter() - started:14.2f}{count:12,}")


def main() -> None:
    """Print the tables."""
    cases(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
    growth()
    uniform()


if __name__ == "__main__":
    main()
