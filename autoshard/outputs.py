"""Files that a command writes: judged before the search, written after it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from autoshard.costmodels.errors import SpecError

if TYPE_CHECKING:
    from autoshard.front import ParetoFront

CHART_ENDINGS = (".html", ".svg", ".png")
CERTIFICATE_ENDINGS = (".parquet", ".json")


def check_file(option: str, path: str | None) -> None:
    """Refuse a path that cannot be written, before time is spent on what goes into it.

    Raises:
        SpecError: it is a directory, or its directory is missing or closed.
    """
    if path is None:
        return
    folder = os.path.dirname(path) or "."
    if not path.strip() or "\0" in path:
        raise SpecError(f"{option} needs the name of a file, got {path!r}.")
    if os.path.isdir(path):
        raise SpecError(f"{option} {path}: is a directory; give a file.")
    if not os.path.isdir(folder):
        raise SpecError(f"{option} {path}: cannot be written, {folder} is not a directory.")
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise SpecError(f"{option} {path}: cannot be written, permission denied.")


def check_chart(path: str | None) -> None:
    """Refuse a chart whose kind cannot be drawn here.

    Raises:
        SpecError: the ending is unknown, or the file cannot be written.
    """
    check_file("--chart", path)
    ending = "" if path is None else _ending(path)
    if path is not None and ending not in CHART_ENDINGS:
        raise SpecError(
            f"--chart {path}: the ending says what to draw; use {', '.join(CHART_ENDINGS)}."
        )


def check_certificate(path: str | None) -> None:
    """Refuse a certificate that nobody can write, before the search.

    Raises:
        SpecError: the ending is unknown, or the file cannot be written.
    """
    check_file("--certificate", path)
    if path is None:
        return
    if _ending(path) not in CERTIFICATE_ENDINGS:
        raise SpecError(
            f"--certificate {path}: the ending says what to write; use "
            f"{' or '.join(CERTIFICATE_ENDINGS)}."
        )


def check_distinct(files: Mapping[str, str | None]) -> None:
    """Refuse to write two things to one file.

    Raises:
        SpecError: names both options.
    """
    seen: dict[str, str] = {}
    for option, path in files.items():
        if path is not None and seen.setdefault(os.path.abspath(path), option) != option:
            raise SpecError(
                f"{seen[os.path.abspath(path)]} and {option} are the same file, {path}."
            )


def write_file(option: str, path: str | None, write: Callable[[Path], object]) -> list[str]:
    """Write one file; returns its path in a list, an empty one where none was asked for.

    Raises:
        SpecError: it cannot be written; the message names the option and the reason.
    """
    if path is None:
        return []
    try:
        write(Path(path))
    except OSError as error:
        reason = error.strerror or str(error)
        raise SpecError(f"{option} {path}: cannot be written ({reason}).") from None
    return [path]


def write_chart(front: ParetoFront, path: Path) -> None:
    """Draw the front into an HTML file that needs no network, or an SVG or PNG file."""
    kind = _ending(str(path))
    front.chart().save(str(path), inline=kind == ".html", scale_factor=2 if kind == ".png" else 1)


def _ending(path: str) -> str:
    return os.path.splitext(path)[1].lower()
