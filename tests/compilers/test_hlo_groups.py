"""Device groups of collectives, as XLA writes them."""

from __future__ import annotations

import pytest
from hlo import _axes_of, _groups

MESH = {"fsdp": 8, "tensor": 2}


@pytest.mark.parametrize(
    ("written", "first", "along"),
    [
        ("mesh['fsdp'=8,'tensor'=2] {'tensor'}", [0, 1], ("tensor",)),
        ("mesh['axis_0'=8,'axis_1'=2] {'axis_0'}", [0, 2, 4, 6, 8, 10, 12, 14], ("fsdp",)),
        ("mesh['fsdp'=8,'tensor'=2] {'fsdp':(2)4}", [0, 2, 4, 6], ("fsdp",)),
        ("mesh['fsdp'=8,'tensor'=2] {'fsdp':(1)2}", [0, 8], ("fsdp",)),
        ("mesh['fsdp'=8,'tensor'=2] {'fsdp':(4)2,'tensor'}", [0, 1, 2, 3], ("fsdp", "tensor")),
        ("[2,8]<=[8,2]T(1,0)", [0, 2, 4, 6, 8, 10, 12, 14], ("fsdp",)),
        ("{{0,4},{8,12},{2,6},{10,14},{1,5},{9,13},{3,7},{11,15}}", [0, 4], ("fsdp",)),
    ],
)
def test_groups_run_along_axes_or_a_part(
    written: str, first: list[int], along: tuple[str, ...]
) -> None:
    groups = _groups(f"%x), replica_groups={written}, use_global_device_ids=true")
    assert sorted(groups.ravel().tolist()) == list(range(16)), "each device is in one group"
    assert groups[0].tolist() == first
    assert _axes_of(groups, MESH) == (along, len(first))


def test_groups_that_are_no_part_are_refused() -> None:
    with pytest.raises(ValueError, match="no part of the axes"):
        _axes_of(_groups("replica_groups={{0,2,4},{6,8,10}}"), MESH)
