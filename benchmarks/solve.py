"""Where the time of ``autoshard solve`` goes: medians of fresh processes, start-up included.

Run it as ``python benchmarks/solve.py [runs]``.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

CASES = {
    "70B, 1 v5p pod": ["--model", "llama3-70b", "--pods", "1"],
    "405B, 8 v5p pods": ["--model", "llama3-405b", "--pods", "8"],
    "405B, 16,384 H100": [
        *("--model", "llama3-405b", "--chip", "h100", "--chips", "16384"),
        *("--global-batch-tokens", "16777216", "--seq-len", "8192"),
    ],
    "the same, 20 points": [
        *("--model", "llama3-405b", "--chip", "h100", "--chips", "16384", "--points", "20"),
        *("--global-batch-tokens", "16777216", "--seq-len", "8192"),
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
)


def run(arguments: list[str]) -> dict[str, float]:
    """Seconds of one solve in a new process, by step."""
    command = [sys.executable, "-m", "autoshard", "solve", "--json", *arguments]
    started = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    wall = time.perf_counter() - started
    search = json.loads(done.stdout)["search"]
    spent = {step: search["seconds"].get(step, 0.0) for step in STEPS}
    return {
        "wall": wall,
        "start-up": wall - sum(spent.values()),
        **spent,
        "candidates": search["meshes"] + search["priced"],
    }


def main() -> None:
    """Print one line a step and one column a case."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    columns = {}
    for name, arguments in CASES.items():
        samples = [run(arguments) for _ in range(runs)]
        columns[name] = {key: statistics.median(s[key] for s in samples) for key in samples[0]}
    print(f"{'median of ' + str(runs) + ', seconds':24}" + "".join(f"{n:>20}" for n in columns))
    for key in next(iter(columns.values())):
        form = "{:>20,.0f}" if key == "candidates" else "{:>20.3f}"
        print(f"{key:24}" + "".join(form.format(column[key]) for column in columns.values()))


if __name__ == "__main__":
    main()
