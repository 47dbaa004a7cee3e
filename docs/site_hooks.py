"""What the site has beside the pages in docs/: guides and notebooks, the commands, names in code.

A page is written where its readers look for it, and its relative links work there. In the site the
same links lead to pages of the site.
"""

from __future__ import annotations

import html
import json
import posixpath
import re
from pathlib import Path
from typing import Any

import click
import griffe
from mkdocs.structure.files import File, Files

import autoshard
from autoshard.cli import main

ROOT = Path(__file__).parents[1]

#: Where a document of the repository is in the site; its place says what its links are relative to.
PAGES = {
    "CONTRIBUTING.md": "contributing.md",
    "autoshard/measured/README.md": "measured.md",
    **{
        f"notebooks/{path.name}": f"notebooks/{path.stem}.md"
        for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
    },
}
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        content = notebook(text) if source.endswith(".ipynb") else text
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links between places of the repository into links between pages."""
    here = page.file.src_uri
    source = {place: name for name, place in PAGES.items()}.get(here, f"docs/{here}")

    def link(found: re.Match[str]) -> str:
        words, target = found.groups()
        path, mark, anchor = target.partition("#")
        if not path or ":" in path:
            return found[0]
        meant = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        place = PAGES.get(meant, meant.removeprefix("docs/"))
        if place == meant:  # neither a page of the site nor in docs/
            return words if meant in words else f"{words} (`{meant}`)"
        return (
            f"[{words}]({posixpath.relpath(place, posixpath.dirname(here) or '.')}{mark}{anchor})"
        )

    text = LINK.sub(link, markdown)
    for mark, make in {
        "<!-- the commands -->": commands,
        "<!-- the public names -->": names,
    }.items():
        text = text.replace(mark, make()) if mark in text else text
    return text


def notebook(text: str) -> str:
    """A notebook as a page: its words and its code; notebooks here are stored without output."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        parts.append(f"```python\n{source}\n```" if cell["cell_type"] == "code" else source)
    return "\n\n".join(parts) + "\n"


def commands() -> str:
    """Every command: what it does, its options, and its examples, out of the code."""
    with click.Context(main, info_name="autoshard") as top:
        parts = [_command(main, top)]
        for name in main.list_commands(top):
            command = main.get_command(top, name)
            assert command is not None
            with click.Context(command, info_name=name, parent=top) as context:
                parts.append(f"## {name}\n\n{_command(command, context)}")
    return "\n\n".join(parts)


def names() -> str:
    """Every public name of the package: the verbs, the nouns, the errors."""
    errors = [name for name, home in autoshard._HOMES.items() if home == "costmodels.errors"]
    verbs = [name for name in autoshard.__all__ if name.islower()]
    nouns = [name for name in autoshard.__all__ if name not in (*verbs, *errors)]
    groups = {"Verbs": verbs, "Nouns": nouns, "Errors": errors}
    return "\n\n".join(
        f"## {title}\n\n"
        + "\n\n".join(f"::: autoshard.{autoshard._HOMES[name]}.{name}" for name in group)
        for title, group in groups.items()
    )


def _command(command: click.Command, context: click.Context) -> str:
    records = [param.get_help_record(context) for param in command.get_params(context)]
    rows = "\n".join(
        f"| <code>{_cell(html.escape(option))}</code> | {_cell(said)} |"
        for option, said in filter(None, records)
    )
    examples = "\n".join(
        line.strip() for line in (command.epilog or "").splitlines() if line.startswith("  ")
    )
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    parts = [f"```text\n{usage}\n```", command.help or "", f"| option | |\n|---|---|\n{rows}"]
    return "\n\n".join([*parts, f"```sh\n{examples}\n```" if examples else ""])


def _cell(text: str) -> str:
    return text.replace("|", "&#124;").replace("\n", " ")  # a bar would end the cell


class Roles(griffe.Extension):
    """Write the roles of docstrings, as in ``:class:`~a.b.Plan```, as the name that they show."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(
                r":\w+:`(~?)([\w.]+)`",
                lambda found: f"`{found[2].rpartition('.')[2] if found[1] else found[2]}`",
                obj.docstring.value,
            )
