"""Roofline time of a matmul, and the collectives of rings and switched trees.

Sources, all chapters of the scaling book: roofline.md (matmul intensity), sharding.md (rings),
gpus.md (switched trees). Times are lower bounds: no latency, no inefficiency.
"""

from __future__ import annotations

import numpy as np

from autoshard.costmodels.candidates import IntColumn
from autoshard.costmodels.cluster import Level
from autoshard.costmodels.costs import Column


def matmul_s(
    tokens: Column,
    d_in: Column | float,
    d_out: Column | float,
    *,
    element_bytes: int,
    flops_per_s: float,
    hbm_bytes_per_s: float,
) -> Column:
    """Seconds of ``[tokens, d_in] x [d_in, d_out]``: the slower of arithmetic and HBM traffic.

    ``max(2 B D F / C, (B D + D F + B F) bytes / W_hbm)``, roofline.md: with few tokens, loading the
    weights binds.
    """
    flops = 2.0 * tokens * d_in * d_out
    moved = element_bytes * (tokens * d_in + d_in * d_out + tokens * d_out)
    return np.maximum(flops / flops_per_s, moved / hbm_bytes_per_s)


def ring_fraction(group: IntColumn, wraps: bool) -> Column:
    """What an all-gather over a torus pays of ``V / W``: 0 alone, 1 on a ring, (n-1)/n on a line.

    sharding.md: with wrap-around, the time does not depend on the size of the ring.
    """
    if wraps:
        return (group > 1).astype(np.float64)
    return (group - 1) / group


def tree_gather_s(
    volume_bytes: Column, group: IntColumn, stride: IntColumn, levels: tuple[Level, ...]
) -> list[Column]:
    """Seconds that an all-gather (or reduce-scatter) holds each level of a switched network.

    ``volume_bytes`` is the gathered array of one group, ``stride`` the distance between
    neighbouring ranks of the group. gpus.md, "cross-node collectives": at a level that joins ``D``
    units, each holding ``q`` members of the group, ``V (D - 1) / (D q w)`` with ``w`` the bandwidth
    per chip; the collective takes the slowest level. Ranks that do not fill whole units share a
    unit only where the sizes divide.
    """
    seconds = []
    inside = np.ones_like(group)
    for index, level in enumerate(levels):
        last = index == len(levels) - 1
        members = group if last else _members(group, stride, level.chips)
        joined = members / inside
        seconds.append(volume_bytes * (joined - 1) / (joined * inside * level.bytes_per_s))
        inside = members
    return seconds


def tree_hop_bytes_per_s(group: IntColumn, stride: IntColumn, levels: tuple[Level, ...]) -> Column:
    """Bandwidth per chip of the slowest hop between neighbouring ranks of a group."""
    rate = np.full(group.shape, levels[-1].bytes_per_s)
    for level in reversed(levels[:-1]):
        rate = np.where(_members(group, stride, level.chips) == group, level.bytes_per_s, rate)
    return rate


def _members(group: IntColumn, stride: IntColumn, unit: int) -> IntColumn:
    """Members of a group inside one unit of ``unit`` chips, in the worst-placed group."""
    slots, odd = np.divmod(unit, stride)
    return np.where((odd == 0) & (slots > 0), np.gcd(np.maximum(slots, 1), group), 1)
