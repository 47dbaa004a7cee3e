"""One question: this model, on this cluster, for this workload, stored by this recipe."""

from __future__ import annotations

from dataclasses import dataclass, field

from autoshard.costmodels.checks import check_count
from autoshard.costmodels.cluster import Cluster
from autoshard.costmodels.errors import SpecError
from autoshard.costmodels.model import Model
from autoshard.costmodels.recipe import Recipe
from autoshard.costmodels.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What a cost model reads beside the candidate columns.

    ``memory_limit_bytes`` is what one chip may hold; the chip's HBM when 0.

    Raises:
        SpecError: the chip has no peak for the precision, or the limit exceeds the chip's HBM.
    """

    model: Model
    cluster: Cluster
    workload: Workload = field(default_factory=Workload)
    recipe: Recipe = field(default_factory=Recipe)
    memory_limit_bytes: int = 0

    def __post_init__(self) -> None:
        self.cluster.chip.peak_flops_per_s(self.workload.precision)
        if self.memory_limit_bytes:
            check_count("problem", "memory_limit_bytes", self.memory_limit_bytes)
        hbm = self.cluster.chip.hbm_bytes
        if self.memory_limit_bytes > hbm:
            raise SpecError(
                f"problem: a memory limit of {self.memory_limit_bytes / 1e9:,.1f} GB exceeds the "
                f"{hbm / 1e9:,.1f} GB of HBM of {self.cluster.chip.name}."
            )

    @property
    def capacity_bytes(self) -> int:
        """Bytes that a plan may use on one chip."""
        return self.memory_limit_bytes or self.cluster.chip.hbm_bytes

    @property
    def peak_flops_per_s(self) -> float:
        """Dense peak of one chip in the workload's precision."""
        return self.cluster.chip.peak_flops_per_s(self.workload.precision)

    @property
    def flops_per_step(self) -> float:
        """Model FLOPs of one step: 6 for each matmul parameter and token (transformers.md).

        Attention dot products are left out, as in the book's ``6 P T``; so is the lookup of an
        untied input embedding, which the book counts and no chip multiplies.
        """
        return 6.0 * self.model.matmul_params * self.workload.global_batch_tokens
