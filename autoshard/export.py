"""The command ``autoshard export``: a plan of a saved front as a launch config."""

from __future__ import annotations

import json

import click

from autoshard.costmodels.errors import SpecError
from autoshard.front import FrontPoint, ParetoFront
from autoshard.outputs import check_file, write_file


def export(
    path: str,
    *,
    stack: str,
    number: int | None,
    within: str | None,
    output: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Print or write the launch config of one plan; its notes go to stderr.

    Args:
        path: a front that ``ParetoFront.save`` wrote.
        stack: the target, one of :data:`autoshard.launch.launch.TARGETS`.
        number: the point of the front, 1 the fastest.
        within: the memory that the plan may use on a chip, such as ``72GiB``.
        output: a file; stdout without.
        as_json: JSON of the values, header and notes in the place of the target's syntax.
        quiet: no notes.

    Raises:
        SpecError: the front cannot be read, has no such point, or the target cannot state it.
        Infeasible: no plan of the front is that small.
    """
    check_file("--output", output)
    front = ParetoFront.load(path)
    made = front.solved(point_of(front, number, within)).launch(stack)
    text = json.dumps(made.to_dict(), indent=2) + "\n" if as_json else made.text
    written = write_file("--output", output, lambda to: to.write_text(text, encoding="utf-8"))
    if not written:
        click.echo(text, nl=False)
    if quiet:
        return
    if not as_json:
        for note in made.notes:
            click.echo(f"- {note}", err=True)
    if written:
        click.echo(f"wrote {', '.join(written)}", err=True)


def point_of(front: ParetoFront, number: int | None, within: str | None) -> FrontPoint:
    """The point of a front by its number from 1, or the fastest within a memory.

    Raises:
        SpecError: both are given, or the front has no such point.
        Infeasible: no plan of the front is that small.
    """
    if number is None:
        return front.point(within)
    if within is not None:
        raise SpecError("--point and --within both choose a plan; give one of them.")
    if not 1 <= number <= len(front.points):
        raise SpecError(
            f"--point {number}: the front has points 1 (the fastest) to {len(front.points)}."
        )
    return front.points[number - 1]
