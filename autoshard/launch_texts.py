"""What the next program needs of a plan, as texts to copy."""

from __future__ import annotations

import json
import math
import shlex

from autoshard.costmodels.errors import SpecError
from autoshard.launch.launch import TARGETS
from autoshard.solved import SolvedPlan

_MIB = 2**20
#: The integers that say a plan, but for what is solved when these are given.
_FIXED = ("dp", "batch_split", "seq_split", "tp", "cp", "pp", "vpp", "microbatches", "reshard")


def launch_texts(solved: SolvedPlan) -> dict[str, str]:
    """A text for each way to use a plan, by its name.

    Launch configs are those of the frameworks that can state it, the front's own stack first.
    """
    texts = {}
    for target in TARGETS:
        try:
            texts[target] = solved.launch(target).text
        except SpecError:
            continue
    own = solved.front.problem["costs"]["profile"].removeprefix("calibrated/")
    texts = {name: texts[name] for name in sorted(texts, key=lambda name: name != own)}
    texts["solve it again"] = solve_command(solved)
    texts["the plan as JSON"] = json.dumps(solved.to_dict(), indent=2)
    return texts


def solve_command(solved: SolvedPlan) -> str:
    """The command that finds this plan again, for models and chips that autoshard knows by name.

    Its degrees are fixed, and the memory limit is what it needs: layers and remat are solved.
    """
    problem = solved.front.problem
    cluster, work, costs = problem["cluster"], problem["workload"], problem["costs"]
    words = ["autoshard", "solve", "--model", problem["model"]["name"]]
    words += ["--chip", cluster["chip"]["name"], "--chips", str(cluster["chips"])]
    if cluster["topology"]:
        words += ["--topology", "x".join(map(str, cluster["topology"]))]
    elif cluster["pods"] > 1:
        words += ["--pods", str(cluster["pods"])]
    words += ["--global-batch-tokens", str(work["global_batch_tokens"])]
    words += ["--seq-len", str(work["seq_len"]), "--precision", work["precision"]]
    name = costs["profile"]
    if costs.get("plans_of"):
        words += ["--stack", name.removeprefix("calibrated/")]
    elif name == "textbook":
        options = costs.get("options", {})
        words += ["--layer", options["compute"]["layer"], "--overlap", options["overlap"]["rule"]]
    else:
        words += ["--costs", name]
    if costs["schedule"] != "1f1b":
        words += ["--schedule", costs["schedule"]]
    needed = math.ceil(solved.point.memory_bytes / _MIB) * _MIB
    if needed < problem["capacity_bytes"]:
        words += ["--memory-limit", f"{needed // _MIB}MiB"]
    if len(problem["recipe"]["reshard"]) > 1:
        words += ["--reshard", ",".join(map(str, problem["recipe"]["reshard"]))]
    words += ["--fix", ",".join(f"{name}={getattr(solved, name)}" for name in _FIXED)]
    return shlex.join([*words, "--points", "1"])
