"""How the state of training is stored, and which sharding of it is allowed."""

from __future__ import annotations

from dataclasses import dataclass

from autoshard.costmodels.checks import check_rate, shown
from autoshard.costmodels.errors import SpecError

ZERO_STAGES = (1, 2, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Bytes per parameter and the allowed ``reshard`` values.

    The defaults are the scaling book's (training.md): 2 bytes of bf16 weight and 8 of fp32 Adam
    moments, no gradient buffer and no fp32 master copy counted.

    ``reshard`` lists the ZeRO stages that the search may use over the ``fsdp`` axis: 3 gathers
    weights for each microbatch and pass, 2 gathers once a step and keeps them, 1 shards the
    optimizer alone. Only 3 by default: the rule of gpus.md, under which the book's plans stay
    optimal with pipelining switched on.

    Raises:
        SpecError: a byte count is negative, or a reshard value is not 1, 2 or 3.
    """

    param_bytes: float = 2.0
    grad_bytes: float = 0.0
    optimizer_bytes: float = 8.0
    reshard: tuple[int, ...] = (3,)

    def __post_init__(self) -> None:
        check_rate("recipe", "param_bytes", self.param_bytes)
        check_rate("recipe", "grad_bytes", self.grad_bytes, zero_ok=True)
        check_rate("recipe", "optimizer_bytes", self.optimizer_bytes, zero_ok=True)
        listed = isinstance(self.reshard, (tuple, list)) and len(self.reshard) > 0
        if not listed or any(type(z) is not int or z not in ZERO_STAGES for z in self.reshard):
            raise SpecError(
                "recipe: reshard must list ZeRO stages out of 1, 2, 3, such as (2, 3), got "
                f"{shown(self.reshard)}."
            )
        object.__setattr__(self, "reshard", tuple(self.reshard))

    @property
    def state_bytes(self) -> float:
        """Bytes of weight, gradient and optimizer state of one parameter, unsharded."""
        return self.param_bytes + self.grad_bytes + self.optimizer_bytes
