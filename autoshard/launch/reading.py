"""Launch configs that people already have, as the degrees that they say."""

from autoshard.launch.read_maxtext import read_maxtext
from autoshard.launch.read_megatron import read_megatron
from autoshard.launch.read_plan import ReadPlan
from autoshard.launch.read_torchtitan import read_torchtitan

__all__ = ["ReadPlan", "read_maxtext", "read_megatron", "read_torchtitan"]
