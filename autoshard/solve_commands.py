"""The bodies of ``solve`` and ``explain``: from options to what is printed and written."""

from __future__ import annotations

import json
from typing import Any

import click

import autoshard
from autoshard.app import INTERRUPTED, Failed, say
from autoshard.options import cost_profile, problem_arguments, search_arguments


def solve(values: dict[str, Any]) -> None:
    """What ``autoshard solve`` prints and writes."""
    from autoshard.outputs import (
        check_certificate,
        check_chart,
        check_distinct,
        check_file,
        write_chart,
        write_file,
    )

    if values["as_json"] and values["as_csv"]:
        raise click.UsageError("--json and --csv both print; give one of them.")
    if values["as_csv"] and values["near_optimal"] is not None:
        raise click.UsageError("--csv prints the front alone; give --near-optimal with --json.")
    if values["near_optimal"] is not None:
        from autoshard.nearly import check_share

        check_share(values["near_optimal"])
    files = {name: values[name] for name in ("save", "parquet", "chart", "html")}
    check_file("--save", files["save"])
    check_file("--parquet", files["parquet"])
    check_chart(files["chart"])
    check_file("--html", files["html"])
    check_certificate(values["certificate"])
    check_distinct({f"--{name}": values[name] for name in (*files, "certificate")})
    profile = cost_profile(values)
    front = _solve(values, profile, points=values["points"])
    written = [
        *write_file("--save", files["save"], front.save),
        *write_file("--parquet", files["parquet"], lambda path: front.frame.write_parquet(path)),
        *write_file("--chart", files["chart"], lambda path: write_chart(front, path)),
        *_write_page(values, profile, front),
    ]
    near = None if values["near_optimal"] is None else _near(values, profile, front)
    if values["as_json"]:
        more = {} if near is None else {"near_optimal": near.to_dict()}
        click.echo(json.dumps(front.to_dict() | more, indent=2))
    elif values["as_csv"]:
        click.echo(front.frame.write_csv(), nl=False)
    else:
        from autoshard.report import front_report

        about = f"{profile.name}, {profile.description}" if profile.description else profile.name
        click.echo(front_report(front, tokens=values["tokens"], assumptions=about))
        if near is not None:
            from autoshard.nearly_report import near_report

            click.echo("\n" + near_report(near, front, tokens=values["tokens"]))
    if values["certificate"] is not None:
        written += _certify(values, profile, front)
    if written and not values["quiet"]:
        click.echo(f"wrote {', '.join(written)}", err=True)


def explain(values: dict[str, Any]) -> None:
    """What ``autoshard explain`` prints."""
    from autoshard.explain import explain as reason
    from autoshard.solving import build_problem

    profile = cost_profile(values)
    if values["why_not"] is not None:
        _why_not(values, profile)
        return
    front = None if values["no_solve"] else _solve(values, profile, points=1)
    best = None if front is None else front.points[0]
    explanation = reason(
        build_problem(values["model"], **problem_arguments(values, profile)),
        tokens=values["tokens"],
        mfu=values["mfu"],
        checkpoints=values["checkpoints"],
        overlap=values["overlap"] or "max",
        plan=None if best is None else best.plan,
        step_time_s=None if best is None else best.step_time_s,
    )
    if values["as_json"]:
        fastest = None if best is None else best.to_dict()
        click.echo(json.dumps({**explanation.to_dict(), "fastest": fastest}, indent=2))
        return
    from autoshard.explain_report import explain_report

    click.echo(explain_report(explanation, front))


def _write_page(values: dict[str, Any], profile: Any, front: autoshard.ParetoFront) -> list[str]:
    """Write the page of ``solve --html``, where it is asked for."""
    if values["html"] is None:
        return []
    from autoshard.outputs import write_file
    from autoshard.progress import Progress
    from autoshard.report_page import report_page

    with Progress(quiet=values["quiet"]) as progress:
        progress.tell("drawing the page")
        page = report_page(front, profile, tokens=values["tokens"])
    return write_file(
        "--html", values["html"], lambda path: path.write_text(page, encoding="utf-8")
    )


def _certify(values: dict[str, Any], profile: Any, front: autoshard.ParetoFront) -> list[str]:
    """Make the certificate of a front and write it."""
    from autoshard.outputs import write_file
    from autoshard.progress import Progress

    if not front.complete:
        click.echo("no certificate: the search was stopped before its end.", err=True)
        return []
    try:
        with Progress(quiet=values["quiet"]) as progress:
            progress.tell("writing the certificate")
            certificate = front.certificate(costs=profile, where=values["where"])
            return write_file("--certificate", values["certificate"], certificate.save)
    except KeyboardInterrupt:
        raise Failed("interrupted before the certificate was written.", INTERRUPTED) from None


def _near(values: dict[str, Any], profile: Any, front: autoshard.ParetoFront) -> Any:
    """What is as good as the fastest plan; None where nobody can say."""
    from autoshard.nearly import near_optimal
    from autoshard.progress import Progress

    if not front.complete:
        if not values["quiet"]:
            say("warning", "no near-optimal plans: the search was stopped before its end.")
        return None
    with Progress(quiet=values["quiet"]) as progress:
        progress.tell("seeking plans as good as the fastest")
        return near_optimal(
            front,
            values["near_optimal"],
            costs=profile,
            where=values["where"],
            time_limit_s=values["time_limit"],
        )


def _why_not(values: dict[str, Any], profile: Any) -> None:
    """Answer ``explain --why-not``."""
    from autoshard.progress import Progress
    from autoshard.reasons import why_not

    if values["no_solve"]:
        raise click.UsageError("--why-not compares plans, and --no-solve seeks none; give one.")
    with Progress(quiet=values["quiet"]) as progress:
        found = why_not(
            values["model"],
            values["why_not"],
            **problem_arguments(values, profile),
            costs=profile,
            **search_arguments(values),
            progress=progress.tell,
        )
    if values["as_json"]:
        click.echo(json.dumps(found.to_dict(), indent=2))
        return
    from autoshard.reasons_report import why_not_report

    click.echo(why_not_report(found))


def _solve(values: dict[str, Any], profile: Any, *, points: int) -> autoshard.ParetoFront:
    """Solve with a line of progress; a warning where the search did not come to its end."""
    from autoshard.asking import DEFAULT_OBJECTIVES
    from autoshard.progress import Progress
    from autoshard.solving import solve as find

    verbose = values.get("verbose", False)
    if verbose and values["quiet"]:
        raise click.UsageError("--verbose says more and --quiet less; give one of them.")
    with Progress(quiet=values["quiet"], verbose=verbose) as progress:
        front = find(
            values["model"],
            **problem_arguments(values, profile),
            costs=profile,
            **search_arguments(values),
            objectives=values.get("front", DEFAULT_OBJECTIVES),
            points=points,
            progress=progress.tell,
        )
        progress.steps(front.search["seconds"])
    if not front.complete and not values["quiet"]:
        say(
            "warning",
            "the search was stopped: each plan is real, what is called proven is proven for its "
            "memory, and points may be missing.",
        )
    return front
