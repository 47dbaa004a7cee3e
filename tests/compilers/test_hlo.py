# ruff: noqa: E501 - lines of a program
"""Reading collectives from the text of a compiled program: kinds, bytes, groups, trip counts."""

from __future__ import annotations

import pytest
from hlo import GATHER_BY_REDUCTION, PADDING, read_collectives

from autoshard.compiled import Collective

MESH = (("data", 1), ("fsdp", 2), ("tensor", 2))

PROGRAM = """HloModule step

%add (x: bf16[], y: bf16[]) -> bf16[] {
  %x = bf16[] parameter(0)
  %y = bf16[] parameter(1)
  ROOT %sum = bf16[] add(%x, %y)
}

%all-reduce-scatter.1 (input: bf16[8,16]) -> bf16[5,16] {
  %input = bf16[8,16]{1,0} parameter(0)
  %zero = bf16[] constant(0)
  %pad.1 = bf16[10,16]{1,0} pad(%input, %zero), padding=0_2x0_0
  %all-reduce.1 = bf16[10,16]{1,0} all-reduce(%pad.1), channel_id=6, replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %slice.1 = bf16[5,16]{1,0} dynamic-slice(%all-reduce.1, %zero), dynamic_slice_sizes={5,16}
}

%condition (state: (s32[], bf16[8,16])) -> pred[] {
  %state = (s32[], bf16[8,16]{1,0}) parameter(0)
  %count = s32[] get-tuple-element(%state), index=0
  %limit = s32[] constant(7)
  ROOT %less = pred[] compare(%count, %limit), direction=LT
}

%body (state.1: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %state.1 = (s32[], bf16[8,16]{1,0}) parameter(0)
  %x.1 = bf16[8,16]{1,0} get-tuple-element(%state.1), index=1
  %gathered = bf16[8,16]{1,0} all-gather(%x.1), channel_id=2, replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}, metadata={op_name="jit(step)/jvp()/while/body/dot_general"}
  %fusion.1 = bf16[5,16]{1,0} fusion(%gathered), kind=kCustom, calls=%all-reduce-scatter.1, metadata={op_name="jit(step)/transpose(jvp())/while/body/rematted_computation/dot_general"}
  %moved = (bf16[1,16]{1,0}, bf16[1,16]{1,0}, u32[], u32[]) collective-permute-start(%fusion.1), channel_id=3, source_target_pairs={{0,1},{2,3}}
  %moved-done = bf16[1,16]{1,0} collective-permute-done(%moved)
  ROOT %next = (s32[], bf16[8,16]{1,0}) tuple(%x.1, %gathered)
}

ENTRY %main (state.2: (s32[], bf16[8,16])) -> f32[] {
  %state.2 = (s32[], bf16[8,16]{1,0}) parameter(0)
  %shard = bf16[2,16]{1,0} parameter(1)
  %zeros = bf16[8,16]{1,0} broadcast(%shard), dimensions={}
  %laid = bf16[8,16]{1,0} dynamic-update-slice(%zeros, %shard, %shard)
  %whole = bf16[8,16]{1,0} all-reduce(%laid), channel_id=4, replica_groups=mesh['a'=4] {'a'}, to_apply=%add, metadata={op_name="jit(step)/jvp()/convert_element_type"}
  %looped = (s32[], bf16[8,16]{1,0}) while(%state.2), condition=%condition, body=%body
  ROOT %loss = f32[] all-reduce(%shard), channel_id=5, replica_groups=mesh['f'=2,'t'=2] {'f'}, to_apply=%add
}
"""


@pytest.fixture(scope="module")
def found() -> dict[tuple[str, str], Collective]:
    return {(c.kind, c.what): c for c in read_collectives(PROGRAM, MESH)}


def test_a_gather_in_a_loop_runs_as_often_as_the_loop_turns(
    found: dict[tuple[str, str], Collective],
) -> None:
    gather = found["all-gather", "forward"]
    assert (gather.times, gather.array_bytes, gather.dtype) == (7, 8 * 16 * 2, "bf16")
    assert gather.moved_bytes == 7 * 256 / 2


def test_groups_are_told_by_the_mesh_axes_that_they_run_along(
    found: dict[tuple[str, str], Collective],
) -> None:
    assert found["all-gather", "forward"].axes == ("fsdp",)  # {0, 2}, {1, 3}
    assert found["reduce-scatter", "recompute"].axes == ("tensor",)  # {0, 1}, {2, 3}
    assert found["all-reduce", "step"].axes == ("fsdp",)
    assert found["all-reduce", f"{GATHER_BY_REDUCTION}: forward"].axes == ("fsdp", "tensor")


def test_a_fused_reduce_scatter_counts_whole_and_its_padding_apart(
    found: dict[tuple[str, str], Collective],
) -> None:
    assert found["reduce-scatter", "recompute"].array_bytes == 8 * 16 * 2
    assert found["reduce-scatter", PADDING].array_bytes == 2 * 16 * 2
    assert found["permute", PADDING].array_bytes == 16 * 2
    assert found["reduce-scatter", PADDING].times == 7


def test_nothing_else_is_a_collective(found: dict[tuple[str, str], Collective]) -> None:
    assert len(found) == 6


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ENTRY %main", "%main", "no ENTRY"),
        ("direction=LT", "direction=LE", "not below a constant"),
        (" all-gather(%x.1)", " ragged-all-to-all(%x.1)", "is not known"),
        (
            "= bf16[8,16]{1,0} all-gather(",
            "= ((bf16[8,16]), (bf16[8,16])) all-gather-start(",
            "several",
        ),
        ("constant(7)", "parameter(7)", "trip count"),
        ("replica_groups={{0,1},{2,3}}", "replica_groups={{0,1,2}}", "no part"),
        ("replica_groups={{0,1},{2,3}}", "replica_groups=?", "unknown form"),
    ],
)
def test_a_text_that_is_not_understood_is_an_error(old: str, new: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_collectives(PROGRAM.replace(old, new), MESH)


def test_a_loop_whose_first_turn_was_taken_out_turns_once_less() -> None:
    begun = PROGRAM.replace(
        "%looped = (s32[], bf16[8,16]{1,0}) while(%state.2)",
        "%one = s32[] constant(1)\n"
        "  %copied = s32[] copy(%one)\n"
        "  %begin = (s32[], bf16[8,16]{1,0}) tuple(%copied, %laid)\n"
        "  %looped = (s32[], bf16[8,16]{1,0}) while(%begin)",
    )
    (gather,) = (c for c in read_collectives(begun, MESH) if c.kind == "all-gather")
    assert gather.times == 6


def test_a_collective_that_fusions_carry_on_counts_once() -> None:
    gather = next(line for line in PROGRAM.splitlines() if "%gathered =" in line)
    fused = (
        "%async_collective_fusion.1 (shard: bf16[8,16]) -> bf16[8,16] {\n"
        "  %x.1 = bf16[8,16]{1,0} parameter(0)\n"
        + gather.replace("%gathered", "ROOT %carried")
        + "\n}\n\n%condition "
    )
    call = (
        "  %again = bf16[8,16]{1,0} fusion(%x.1), kind=kCustom, calls=%async_collective_fusion.1\n"
        "  ROOT %next"
    )
    text = PROGRAM.replace("%condition (", fused + "(").replace("  ROOT %next", call)
    (found,) = (c for c in read_collectives(text, MESH) if c.kind == "all-gather")
    assert found.times == 7


def test_slices_reduce_through_their_hosts() -> None:
    send = (
        "  %sent = (bf16[3,16]{1,0}, u32[], token[]) send(%shard), channel_id=9, "
        'frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}\n  %zeros ='
    )
    found = read_collectives(PROGRAM.replace("  %zeros =", send), (("data", 2), *MESH[1:]))
    (between,) = (c for c in found if c.axes == ("data",))
    assert (between.kind, between.array_bytes, between.group_size) == ("all-reduce", 96, 2)
