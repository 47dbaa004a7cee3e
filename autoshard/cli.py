"""The command ``autoshard``: results to stdout, everything else to stderr.

Only click is loaded here; each command imports what it needs when it runs.
"""

from __future__ import annotations

from typing import Any

import click

import autoshard
from autoshard.app import INTERRUPTED, App, Failed, say
from autoshard.options import Ratio, cost_profile, problem_arguments, problem_options

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
_QUIET = click.option("-q", "--quiet", is_flag=True, help="Say nothing on stderr but errors.")


@click.group(
    "autoshard",
    cls=App,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    invoke_without_command=True,
    epilog="""\b
Examples:
  autoshard solve --model llama3-70b --pods 1
  autoshard solve --model llama3-405b --chip h100 --chips 16384 --global-batch-tokens 16Mi
  autoshard solve --model ./config.json --cluster ours.toml --chart front.html
  autoshard explain --model llama3-70b --pods 1

Exit status: 0 solved, 2 bad input, 3 infeasible, 130 interrupted, 143 terminated.""",
)
@click.version_option(autoshard.__version__, prog_name="autoshard", message="%(prog)s %(version)s")
@click.pass_context
def main(context: click.Context) -> None:
    """Find the fastest parallelism plan for training a model on a cluster, and prove it."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@main.command(
    epilog="""\b
Examples:
  autoshard solve --model llama3-70b --pods 1
  autoshard solve --model llama3-8b --chip h100 --chips 64 --memory-limit 72GiB --where "tp <= 8"
  autoshard solve --model llama3-8b --chips 64 --where "mfu > 0.9 and memory_gib < 3" --fix tp=4
  autoshard solve --model llama3-70b --pods 1 --front time,memory,chips
  autoshard solve --model llama3-70b --topology 8x8x8 --points 0 --csv > front.csv""",
)
@problem_options
@click.option(
    "--points", type=int, default=12, show_default=True, help="Plans to show at most; 0 for all."
)
@click.option(
    "--front",
    default="time,memory",
    show_default=True,
    metavar="LIST",
    help="What the front trades: time and any of memory, chips.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the documented JSON.")
@click.option("--csv", "as_csv", is_flag=True, help="Print the front as CSV.")
@click.option("--parquet", metavar="FILE", help="Write the front as Parquet.")
@click.option("--save", metavar="FILE", help="Write the JSON, for ParetoFront.load.")
@click.option("--chart", metavar="FILE", help="Draw the front: .html, .svg or .png.")
@click.option(
    "--certificate",
    metavar="FILE",
    help="Write what excludes every other mesh, point by point: .parquet or .json.",
)
@_QUIET
def solve(**values: Any) -> None:
    """The proven Pareto front of step time against memory per chip, or other objectives."""
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
    files = {name: values[name] for name in ("save", "parquet", "chart")}
    check_file("--save", files["save"])
    check_file("--parquet", files["parquet"])
    check_chart(files["chart"])
    check_certificate(values["certificate"], where=values["where"], front=values["front"])
    check_distinct({f"--{name}": values[name] for name in (*files, "certificate")})
    profile = cost_profile(values)
    front = _solve(values, profile, points=values["points"])
    written = [
        *write_file("--save", files["save"], front.save),
        *write_file("--parquet", files["parquet"], lambda path: front.frame.write_parquet(path)),
        *write_file("--chart", files["chart"], lambda path: write_chart(front, path)),
    ]
    if values["as_json"]:
        click.echo(front.to_json())
    elif values["as_csv"]:
        click.echo(front.frame.write_csv(), nl=False)
    else:
        from autoshard.report import front_report

        about = f"{profile.name}, {profile.description}" if profile.description else profile.name
        click.echo(front_report(front, tokens=values["tokens"], assumptions=about))
    if values["certificate"] is not None:
        written += _certify(values, profile, front)
    if written and not values["quiet"]:
        click.echo(f"wrote {', '.join(written)}", err=True)


@main.command(
    epilog="""\b
Examples:
  autoshard explain --model llama3-70b --pods 1
  autoshard explain --model llama2-13b --chips 4096 --global-batch-tokens 3M --no-solve
  autoshard explain --model llama3-70b --pods 1 --why-not "tp=16,pp=16\"""",
)
@problem_options
@click.option(
    "--mfu", type=Ratio(), default="40%", show_default=True, help="MFU that the book assumes."
)
@click.option(
    "--checkpoints", type=int, default=4, show_default=True, help="Tensors a layer that it saves."
)
@click.option("--no-solve", is_flag=True, help="The book's reasoning only, without a search.")
@click.option(
    "--why-not",
    metavar="VALUES",
    help='Only why the fastest plan does not have these values, such as "tp=16,pp=16".',
)
@_JSON
@_QUIET
def explain(**values: Any) -> None:
    """The scaling book's reasoning, and where the time goes."""
    import json

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


@main.command(
    epilog="""\b
Examples:
  autoshard validate
  autoshard validate --measurements ours.csv --calibration ours.toml
  autoshard validate --json > errors.json"""
)
@click.option(
    "--measurements",
    metavar="FILE",
    help="Runs to judge: a CSV with columns of the built-in tables.  [default: these]",
)
@click.option(
    "--costs",
    default="calibrated",
    show_default=True,
    metavar="NAME",
    help="What predicts: calibrated, priors (its constants unfitted) or textbook.",
)
@click.option("--calibration", metavar="FILE", help="Constants that `calibrate` has written.")
@_JSON
@click.option("--html", metavar="FILE", help="Write tables and charts as a page.")
@_QUIET
def validate(**values: Any) -> None:
    """Hold predictions against measured runs that they have not seen."""
    from autoshard.costmodels.calibration import load_calibration
    from autoshard.outputs import write_file
    from autoshard.validating import validate as judge

    if values["html"] is not None:
        from autoshard.validate_page import check_page

        check_page(values["html"])
    own = values["calibration"]
    validation = judge(
        values["measurements"],
        calibration=None if own is None else load_calibration(own),
        costs=values["costs"],
    )
    written = []
    if values["html"] is not None:
        from autoshard.validate_page import validation_page

        page = validation_page(validation)
        written = write_file(
            "--html", values["html"], lambda path: path.write_text(page, encoding="utf-8")
        )
    from autoshard.validate_report import validation_dict, validation_report

    if values["as_json"]:
        import json

        click.echo(json.dumps(validation_dict(validation), indent=2))
    else:
        click.echo(validation_report(validation))
    if written and not values["quiet"]:
        click.echo(f"wrote {', '.join(written)}", err=True)


@main.command(
    epilog="""\b
Examples:
  autoshard calibrate ours.csv --output ours.toml
  autoshard calibrate ours.csv --json
  autoshard calibrate --output all.toml"""
)
@click.argument("file", required=False)
@click.option("--output", metavar="FILE", help="Write the constants here; without, only print.")
@_JSON
@_QUIET
def calibrate(file: str | None, output: str | None, as_json: bool, quiet: bool) -> None:
    """Fit the constants of the calibrated costs to measured runs.

    FILE is a CSV with columns of the built-in tables; a few runs of one cluster will do. Without
    it, all constants are fitted again to the runs that come with autoshard, which takes minutes.
    """
    from autoshard import calibrate_report, calibrating, calibrating_file
    from autoshard.outputs import check_file, write_file
    from autoshard.progress import Progress

    check_file("--output", output)
    warnings: tuple[str, ...] = ()
    with Progress(quiet=quiet) as progress:
        progress.tell("fitting")
        if file is not None:
            done = calibrating.calibrate(file)
            text = "" if output is None else calibrating_file.own_toml(done, file)
            warnings = done.warnings
            told = calibrate_report.calibrated_dict(done, output) if as_json else None
            said = "" if as_json else calibrate_report.calibrated_report(done)
        else:
            made = calibrating.calibrate_built_in(tell=progress.tell)
            text = "" if output is None else calibrating_file.shipped_toml(made)
            told = calibrate_report.shipped_dict(made, output) if as_json else None
            said = "" if as_json else calibrate_report.shipped_report(made)
    written = write_file("--output", output, lambda to: to.write_text(text, encoding="utf-8"))
    if as_json:
        import json

        said = json.dumps(told, indent=2)
    click.echo(said)
    if quiet:
        return
    for warning in warnings:
        say("warning", warning)
    click.echo(
        f"wrote {', '.join(written)}" if written else "nothing written; --output FILE writes it",
        err=True,
    )


@main.command()
@click.option("--costs", is_flag=True, help="List cost profiles and models instead.")
@_JSON
def models(costs: bool, as_json: bool) -> None:
    """List the model presets, or what can be given as --costs."""
    from autoshard import listings

    if costs:
        _list("costs", listings.costs, listings.cost_columns, as_json)
    else:
        _list("models", listings.models, listings.model_columns, as_json)


@main.command()
@_JSON
def clusters(as_json: bool) -> None:
    """List the chips, with their peaks, memory, pods and networks."""
    from autoshard import listings

    _list("chips", listings.chips, listings.chip_columns, as_json, listings.CHIPS_NOTE)


def _list(what: str, values: Any, columns: Any, as_json: bool, note: str = "") -> None:
    if as_json:
        import json

        click.echo(json.dumps({"schema": f"autoshard.{what}/1", what: values()}, indent=2))
        return
    from autoshard.report import plain_table, render

    click.echo(render(plain_table(columns()), note))


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


def _why_not(values: dict[str, Any], profile: Any) -> None:
    """Answer ``explain --why-not``."""
    import json

    from autoshard.fixing import parse_fix
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
            where=values["where"],
            fix=parse_fix(values["fix"]),
            gap=values["gap"],
            time_limit_s=values["time_limit"],
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
    from autoshard.fixing import parse_fix
    from autoshard.progress import Progress
    from autoshard.solving import solve as find

    with Progress(quiet=values["quiet"]) as progress:
        front = find(
            values["model"],
            **problem_arguments(values, profile),
            costs=profile,
            where=values["where"],
            fix=parse_fix(values["fix"]),
            objectives=values.get("front", DEFAULT_OBJECTIVES),
            points=points,
            gap=values["gap"],
            time_limit_s=values["time_limit"],
            progress=progress.tell,
        )
    if not front.complete and not values["quiet"]:
        say(
            "warning",
            "the search was stopped: each plan is real, what is called proven is proven for its "
            "memory, and points may be missing.",
        )
    return front
