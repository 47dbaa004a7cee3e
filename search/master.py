"""The master problem: which mesh next, for one memory budget.

Two roads to the same answer. Where nobody adds constraints, the next mesh is the row with the least
lower bound: an argmin. :class:`MasterModel` is the same choice as a CP-SAT model, one Boolean a
row, the named decisions tied to the rows by linear sums, for constraints that a user states on
them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from autoshard.costmodels.candidates import COLUMNS
from autoshard.costmodels.costs import Column
from autoshard.costmodels.errors import SpecError
from autoshard.search.rows import Rows
from autoshard.search.stage_model import Constrain

#: One Boolean a row is fast to about this many rows (half a second for 98,000).
LARGEST_MASTER = 200_000

#: Lower bounds as integers: steps of a part in 10^9 of the largest, far below any gap.
RESOLUTION = 10**9


class MasterModel:
    """CP-SAT over the rows, with ``dp, fsdp, ..., microbatches, reshard`` as named IntVars.

    Args:
        rows: the candidates.
        constrain: adds the user's constraints; called with the model and the variables by name.

    Raises:
        SpecError: too many rows for one Boolean each.
    """

    def __init__(self, rows: Rows, constrain: Constrain | None = None) -> None:
        from ortools.sat.python import cp_model

        if len(rows) > LARGEST_MASTER:
            raise SpecError(
                f"a constraint on the master model would range over {len(rows)} candidates, more "
                f"than {LARGEST_MASTER}: narrow the space with --where first."
            )
        self.model = cp_model.CpModel()
        self.chosen = [self.model.new_bool_var("") for _ in range(len(rows))]
        self.model.add_exactly_one(self.chosen)
        columns: dict[str, Any] = {name: getattr(rows.candidates, name) for name in COLUMNS}
        columns |= {"fsdp": rows.candidates.fsdp, "chips_used": rows.candidates.chips_used}
        named: dict[str, Any] = {}
        for name, column in columns.items():
            values = column.tolist()
            named[name] = self.model.new_int_var(
                min(values, default=0), max(values, default=0), name
            )
            tied = cp_model.LinearExpr.weighted_sum(self.chosen, values)
            self.model.add(tied == named[name])
        self.variables = named
        if constrain is not None:
            constrain(self.model, named)

    def best(self, lower_bound: Column) -> int | None:
        """The row with the least lower bound that the constraints allow; None where none is left.

        Rows whose bound is infinite are out.
        """
        from ortools.sat.python import cp_model

        finite = np.isfinite(lower_bound)
        if not finite.any():
            return None
        model = self.model.clone()
        unit = max(float(lower_bound[finite].max()) / RESOLUTION, 1e-30)
        cost = np.floor(np.where(finite, lower_bound, 0.0) / unit).astype(np.int64)
        for row in np.nonzero(~finite)[0].tolist():
            model.add(self.chosen[row] == 0)
        model.minimize(cp_model.LinearExpr.weighted_sum(self.chosen, cost.tolist()))
        return self._solve(model)

    def allows(self, row: int) -> bool:
        """Whether the constraints allow a row."""
        model = self.model.clone()
        model.add(self.chosen[row] == 1)
        return self._solve(model) is not None

    def _solve(self, model: Any) -> int | None:
        from ortools.sat.python import cp_model

        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.random_seed = 0
        solver.parameters.catch_sigint_signal = False
        status = solver.solve(model)
        if status == cp_model.INFEASIBLE:
            return None
        if status != cp_model.OPTIMAL:
            raise SpecError(
                f"the constraints on the master model cannot be solved: "
                f"{solver.status_name(status)}, {model.validate() or 'no reason given'}."
            )
        return next(i for i, chosen in enumerate(self.chosen) if solver.value(chosen))
