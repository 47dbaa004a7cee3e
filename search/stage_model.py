"""The sub-problem as CP-SAT: one Boolean a choice of a stage, named integers tied to them.

Costs become integers here and only here: seconds in quanta of about a ten-millionth of the step,
rounded up. A step sums one rounded term a stage, so the integer optimum exceeds the true one by
less than ``error_s``. Memory stays in floats: a choice fits or it does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoshard.costmodels.costs import Column
from autoshard.costmodels.legality import UNRESTRICTED, Legality
from autoshard.search import families
from autoshard.search.dealing import best_choices, most_layers
from autoshard.search.stages import Choices, Leaf, Stage, kind_of, stage_memory

#: Called with the CpModel and its named variables before a model is solved.
Constrain = Callable[[Any, dict[str, Any]], None]

#: Quanta of one stage's longest time; an objective stays below 2**53, exact in a double.
QUANTA = 2**22


class StageModel:
    """CP-SAT over ``layers_per_stage[s]`` and ``remat[s][r]`` of one mesh within a memory budget.

    Args:
        stage: the mesh's coefficients.
        budget_bytes: what one chip may hold.
        below_s: choices that alone make a step slower may be left out.
        constrain: adds the user's constraints; then no choice is left out because another beats it.
        legality: what a framework can state; then the stages' choices are all of one family.
    """

    def __init__(
        self,
        stage: Stage,
        budget_bytes: float,
        *,
        below_s: float = np.inf,
        constrain: Constrain | None = None,
        legality: Legality = UNRESTRICTED,
    ) -> None:
        from ortools.sat.python import cp_model

        self.stage = stage
        most = stage.n_layers if constrain else most_layers(stage, budget_bytes, below_s)
        self.members: list[NDArray[np.bool_]] = []
        if legality.restricts_stages:
            self.choices = families.choices_of(stage, legality, most, budget_bytes)
            self.members = families.memberships(stage, legality, most, budget_bytes, self.choices)
        else:
            self.choices = Choices.of(stage, most)
        self.model = cp_model.CpModel()
        if constrain or legality.restricts_stages:
            memory = [stage_memory(stage, self.choices, s) for s in range(stage.pp)]
            self.menus = [
                np.nonzero((held <= budget_bytes) & (self.choices.layers >= fewest))[0]
                for held, fewest in zip(memory, stage.fewest.tolist(), strict=True)
            ]
        else:
            self.menus = [r[r >= 0] for r in best_choices(stage, self.choices, budget_bytes)]
        dealt = legality.dealt(stage.n_layers, stage.pp)
        if dealt is not None:
            pairs = zip(self.menus, dealt.tolist(), strict=True)
            self.menus = [menu[self.choices.layers[menu] == n] for menu, n in pairs]
        self.empty = any(not len(menu) for menu in self.menus)
        if not self.empty:
            self._build(constrain, below_s)

    def _build(self, constrain: Constrain | None, below_s: float) -> None:
        from ortools.sat.python import cp_model

        stage, model, choices = self.stage, self.model, self.choices
        tops = [self._column("seconds", s).max() for s in range(stage.pp)]
        tops += [self._column("exposed", s).max() for s in range(stage.pp)]
        self.unit_s = max(float(max(tops)), 1e-30) / QUANTA
        limit = QUANTA + 1
        slowest = model.new_int_var(0, limit, "slowest")
        exposed = model.new_int_var(0, limit, "exposed")
        self.chosen: list[list[Any]] = []
        layers: list[Any] = []
        remat: list[list[Any]] = []
        times: list[Any] = []
        for s, menu in enumerate(self.menus):
            chosen = [model.new_bool_var("") for _ in menu]
            self.chosen.append(chosen)
            model.add_exactly_one(chosen)

            def tied(column: Any, chosen: list[Any] = chosen) -> Any:
                return cp_model.LinearExpr.weighted_sum(chosen, column.tolist())

            counts = choices.layers[menu]
            number = model.new_int_var(
                int(counts.min()), int(counts.max()), f"layers_per_stage[{s}]"
            )
            model.add(tied(counts) == number)
            layers.append(number)
            if constrain:
                remat.append([])
                for r in range(len(stage.saved)):
                    run = model.new_int_var(0, stage.n_layers, f"remat[{s}][{r}]")
                    model.add(tied(choices.rungs[menu, r]) == run)
                    remat[-1].append(run)
            took = tied(self._whole(self._column("seconds", s)))
            model.add(slowest >= took)
            times.append(took)
            more = self._whole(self._column("exposed", s))
            if more.any():
                model.add(exposed >= tied(more))
        model.add(sum(layers) == stage.n_layers)
        if self.members:
            self._one_family()
        # Times vpp, the weights m - 1/v and 1/v are whole, and times 3 most of a zero bubble's;
        # where no small scale does that, they are made fine enough.
        weights = (stage.max_weight, stage.sum_weight)
        scales = (stage.vpp * times for times in range(1, 2**10))
        scale = next(
            (k for k in scales if all(abs(w * k - round(w * k)) <= 1e-9 for w in weights)),
            stage.vpp * 2**10,
        )
        whole = [int(np.ceil(w * scale - 1e-9)) for w in weights]
        self.scale = scale
        step = whole[0] * slowest + whole[1] * sum(times) + scale * exposed
        if constrain:
            constrain(model, {"layers_per_stage": layers, "remat": remat})
        model.minimize(step)
        # Each stage's time and the exposed work are rounded up by less than a quantum.
        terms = stage.max_weight + stage.sum_weight * stage.pp + 1.0
        rounded = sum(abs(w - x / scale) for w, x in zip(weights, whole, strict=True))
        self.error_s = self.unit_s * (terms + rounded * stage.pp * QUANTA)
        if np.isfinite(below_s):
            model.add(step <= math.ceil((below_s + self.error_s) / self.unit_s * scale))

    def _one_family(self) -> None:
        """One family is chosen, and every stage is a choice of it."""
        family = [self.model.new_bool_var("") for _ in self.members]
        self.model.add_exactly_one(family)
        for menu, chosen in zip(self.menus, self.chosen, strict=True):
            for there, inside in zip(family, self.members, strict=True):
                among = [b for b, member in zip(chosen, inside[menu], strict=True) if member]
                self.model.add_bool_or([*among, ~there])

    def _column(self, name: str, s: int) -> Column:
        column: Column = getattr(self.choices, name)[kind_of(self.stage, s)][self.menus[s]]
        return column

    def _whole(self, seconds: Column) -> NDArray[np.int64]:
        whole: NDArray[np.int64] = np.ceil(seconds / self.unit_s - 1e-9).astype(np.int64)
        return whole

    def solve(self, time_limit_s: float | None = None) -> tuple[Leaf | None, bool]:
        """The fastest plan, to ``error_s``, or None; and whether the solver finished."""
        if self.empty:
            return None, True
        from ortools.sat.python import cp_model

        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.random_seed = 0
        # or-tools #5293: presolve may cut off the optimum by removing an enforcement literal.
        solver.parameters.presolve_inclusion_work_limit = 0
        # The deepest pipelines that publications have are solved six times faster without cuts.
        solver.parameters.cut_level = 0
        # Left on, a solve leaves the process's SIGINT action at "kill" when it returns.
        solver.parameters.catch_sigint_signal = False
        if time_limit_s is not None:
            solver.parameters.max_time_in_seconds = max(time_limit_s, 0.01)
        status = solver.solve(self.model)
        if status == cp_model.INFEASIBLE:
            return None, True
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return None, False
        picked = [
            int(menu[next(i for i, b in enumerate(chosen) if solver.value(b))])
            for menu, chosen in zip(self.menus, self.chosen, strict=True)
        ]
        rungs = self.choices.rungs[picked]
        time_s, memory = self.stage.evaluate(rungs)
        leaf = Leaf(rungs=rungs, time_s=time_s, memory_bytes=memory)
        return leaf, status == cp_model.OPTIMAL
