"""autoshard: the fastest parallelism plan for a model on a cluster, with a proof.

    >>> import autoshard
    >>> front = autoshard.solve("llama3-70b", pods=1, points=1)
    >>> front.fastest().fsdp, front.fastest().tp
    (2048, 4)

Five nouns (``Model``, ``Cluster``, ``Workload``, ``Plan``, ``ParetoFront``) and one verb
(``solve``). Importing this package loads neither the solver nor numpy; they come with the first
``solve``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoshard.costmodels.chip import Chip
    from autoshard.costmodels.cluster import Cluster
    from autoshard.costmodels.errors import (
        AutoshardError,
        CostModelError,
        Infeasible,
        SpecError,
        UnknownName,
    )
    from autoshard.costmodels.model import Model
    from autoshard.costmodels.plan import Plan
    from autoshard.costmodels.problem import Problem
    from autoshard.costmodels.recipe import Recipe
    from autoshard.costmodels.textbook import textbook
    from autoshard.costmodels.workload import Workload
    from autoshard.differing import Difference, diff
    from autoshard.evaluating import Evaluation, evaluate
    from autoshard.front import FrontPoint, ParetoFront
    from autoshard.sensing import Sensitivity, sensitivity
    from autoshard.solved import SolvedPlan
    from autoshard.solving import build_problem, solve

__version__ = "0.1.0"

# Where each public name lives; loaded when first used. PEP 810 will make this a plain import.
# No module has the name of a function: importing it would put the module in the function's place.
_HOMES = {
    "AutoshardError": "costmodels.errors",
    "Chip": "costmodels.chip",
    "Cluster": "costmodels.cluster",
    "CostModelError": "costmodels.errors",
    "Difference": "differing",
    "Evaluation": "evaluating",
    "FrontPoint": "front",
    "Infeasible": "costmodels.errors",
    "Model": "costmodels.model",
    "ParetoFront": "front",
    "Plan": "costmodels.plan",
    "Problem": "costmodels.problem",
    "Recipe": "costmodels.recipe",
    "Sensitivity": "sensing",
    "SolvedPlan": "solved",
    "SpecError": "costmodels.errors",
    "UnknownName": "costmodels.errors",
    "WhyNot": "reasons",
    "Workload": "costmodels.workload",
    "build_problem": "solving",
    "diff": "differing",
    "evaluate": "evaluating",
    "sensitivity": "sensing",
    "solve": "solving",
    "textbook": "costmodels.textbook",
    "why_not": "reasons",
}

__all__ = [
    "AutoshardError",
    "Chip",
    "Cluster",
    "CostModelError",
    "Difference",
    "Evaluation",
    "FrontPoint",
    "Infeasible",
    "Model",
    "ParetoFront",
    "Plan",
    "Problem",
    "Recipe",
    "Sensitivity",
    "SolvedPlan",
    "SpecError",
    "UnknownName",
    "WhyNot",
    "Workload",
    "build_problem",
    "diff",
    "evaluate",
    "sensitivity",
    "solve",
    "textbook",
    "why_not",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'autoshard' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"autoshard.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
