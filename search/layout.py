"""Which network carries which logical axis of a plan, in words."""

from __future__ import annotations

from collections.abc import Iterator

from autoshard.costmodels.candidates import Candidates
from autoshard.costmodels.plan import Plan
from autoshard.costmodels.problem import Problem


def layout_words(problem: Problem, layout: int, degrees: dict[str, int]) -> dict[str, str]:
    """Which network carries which logical axis, for the axes that a plan has."""
    cluster = problem.cluster
    words = {}
    if cluster.chip.kind == "tpu":
        chosen, axes = cluster.layouts[layout], cluster.torus
        data = "ici " + "".join(axes[i].name for i in chosen.data_axes)
        tensor = "ici " + "".join(axes[i].name for i in chosen.tensor_axes)
        if degrees["batch_split"] * degrees["seq_split"] > 1:
            words["fsdp"] = data
        words |= {name: data for name in ("cp", "pp") if degrees[name] > 1}
        if degrees["tp"] > 1:
            words["tp"] = tensor
        if degrees["dp"] > 1:
            words["dp"] = "dcn"
        return words
    stride = 1
    fsdp = degrees["batch_split"] * degrees["seq_split"]
    order = (("tp", degrees["tp"]), ("cp", degrees["cp"]), ("fsdp", fsdp))
    for name, degree in (*order, ("dp", degrees["dp"]), ("pp", degrees["pp"])):
        stride *= degree
        if degree > 1:
            reached = [level.name for level in cluster.levels if level.chips >= stride]
            words[name] = reached[0] if reached else cluster.levels[-1].name
    return words


def layouts_of(problem: Problem, plan: Plan) -> Iterator[int]:
    """The layouts of the cluster under which a plan is laid out as it says."""
    degrees = {name: getattr(plan, name) for name in Candidates.__slots__ if name != "layout"}
    for layout in range(len(problem.cluster.layouts)):
        if layout_words(problem, layout, degrees) == dict(plan.layout):
            yield layout
