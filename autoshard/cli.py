"""The command ``autoshard``: results to stdout, everything else to stderr.

Only click is loaded here; each command imports what it needs when it runs.
"""

from __future__ import annotations

from typing import Any

import click

import autoshard
from autoshard import shell_completion
from autoshard.app import App, say
from autoshard.options import LAUNCHES, Ratio, problem_options

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
_QUIET = click.option("-q", "--quiet", is_flag=True, help="Say nothing on stderr but errors.")
_VERBOSE = click.option(
    "-v", "--verbose", is_flag=True, help="Say on stderr what is done, with seconds."
)


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
  autoshard solve --model llama3-8b --chip h100 --chips 64 --stack megatron --html report.html
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
    shell_complete=shell_completion.some_of(*shell_completion.OBJECTIVES),
    help="What the front trades: time and any of memory, chips.",
)
@_VERBOSE
@click.option("--json", "as_json", is_flag=True, help="Print the documented JSON.")
@click.option("--csv", "as_csv", is_flag=True, help="Print the front as CSV.")
@click.option("--parquet", metavar="FILE", help="Write the front as Parquet.")
@click.option("--save", metavar="FILE", help="Write the JSON, for ParetoFront.load.")
@click.option("--chart", metavar="FILE", help="Draw the front: .html, .svg or .png.")
@click.option("--html", metavar="FILE", help="Write a page that shows every plan of the front.")
@click.option(
    "--certificate",
    metavar="FILE",
    help="Write what excludes every other mesh, point by point: .parquet or .json.",
)
@click.option(
    "--near-optimal",
    type=Ratio(),
    metavar="RATIO",
    help="List the plans, one a mesh, that are as good as the fastest within this, such as 2%.",
)
@_QUIET
def solve(**values: Any) -> None:
    """The proven Pareto front of step time against memory per chip, or other objectives."""
    from autoshard import solve_commands

    solve_commands.solve(values)


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
    from autoshard import solve_commands

    solve_commands.explain(values)


@main.command(
    epilog="""\b
Examples:
  autoshard evaluate --model llama3-70b --pods 1 --plan "tp=4,fsdp=1024,seq_split=1"
  autoshard evaluate --model llama3-405b --chip h100 --chips 16384 --seq-len 8192 \\
      --global-batch-tokens 16Mi --stack megatron --plan "tp=8,pp=16,remat=full:1"
  autoshard evaluate --stack megatron --model llama3-8b --chip h100 --chips 64 -- \\
      --tensor-model-parallel-size 8 --pipeline-model-parallel-size 2 --micro-batch-size 1
  autoshard evaluate --stack maxtext --model llama3-70b --config ours.yml
  autoshard evaluate --stack torchtitan --model llama3-8b --chip h100 --config ours.toml"""
)
@problem_options
@click.argument("arguments", nargs=-1, metavar="[-- ARGUMENT...]")
@click.option(
    "--config",
    metavar="FILE",
    help="The plan is that of this launch config: MaxText's .yml, or torchtitan's .toml.",
)
@click.option(
    "--plan",
    metavar="NAME=VALUE,...",
    help='Values of the plan, such as "tp=8,pp=16,micro_batch_size=1,remat=full:2"; the others '
    "get defaults, which are said.",
)
@click.option("--no-solve", is_flag=True, help="Do not seek the fastest plan to compare with.")
@_JSON
@_QUIET
def evaluate(**values: Any) -> None:
    """Price a plan that you run: does it fit, how far from the best is it, what gains most.

    The plan is said by values (--plan), by a launch config (--config), or by the arguments of a
    launch after --, in the words of --stack.
    """
    from autoshard import plan_commands

    click.echo(plan_commands.evaluate(values))


@main.command(
    epilog="""\b
Examples:
  autoshard diff front.json front.json:3
  autoshard diff 8_pods.json 16_pods.json --json"""
)
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@_JSON
def diff(a: str, b: str, as_json: bool) -> None:
    """What separates two saved plans, term by term.

    A and B are FRONT.json, which stands for its fastest plan, or FRONT.json:3, its third; files
    that `solve --save` or `evaluate --json` wrote.
    """
    from autoshard import plan_commands

    click.echo(plan_commands.diff(a, b, as_json=as_json))


@main.command(
    epilog="""\b
Examples:
  autoshard sensitivity --model llama3-70b --pods 1
  autoshard sensitivity --model llama3-405b --chip h100 --chips 16384 --seq-len 8192 \\
      --global-batch-tokens 16Mi --stack megatron"""
)
@problem_options
@_JSON
@_QUIET
def sensitivity(**values: Any) -> None:
    """What 10 % more of each resource gives, or another batch: each solved again."""
    from autoshard import plan_commands

    click.echo(plan_commands.sensitivity(values))


@main.command(
    epilog="""\b
Examples:
  autoshard validate
  autoshard validate --measurements ours.csv --calibration ours.toml
  autoshard validate --json > errors.json
  autoshard validate --compilers"""
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
@click.option(
    "--compilers",
    is_flag=True,
    help="Judge memory and bytes moved by what XLA and PyTorch make of plans instead.",
)
@_JSON
@click.option("--html", metavar="FILE", help="Write tables and charts as a page.")
@_QUIET
def validate(**values: Any) -> None:
    """Hold predictions against measured runs that they have not seen."""
    if values["compilers"]:
        from autoshard.plan_commands import validate_compilers

        click.echo(validate_compilers(values))
        return
    from autoshard.costmodels.calibration import load_calibration
    from autoshard.outputs import check_file, write_file
    from autoshard.progress import Progress
    from autoshard.validating import validate as judge

    check_file("--html", values["html"])
    own = values["calibration"]
    with Progress(quiet=values["quiet"]) as progress:
        progress.tell("predicting measured runs")
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


@main.command(
    epilog="""\b
Examples:
  autoshard solve --model llama3-70b --chip h100 --chips 512 --stack megatron --save front.json
  autoshard export front.json --stack megatron > plan.sh
  autoshard export front.json --stack nemo --within 60GiB
  autoshard export front.json --stack jax --point 2 --output mesh.py"""
)
@click.argument("front")
@click.option(
    "--stack",
    required=True,
    type=click.Choice(LAUNCHES),
    help="What the config is for.",
)
@click.option("--point", type=int, metavar="N", help="Point of the front.  [default: 1, fastest]")
@click.option("--within", metavar="SIZE", help="The fastest plan of at most so much memory.")
@click.option("--output", metavar="FILE", help="Write the config here; without, print it.")
@click.option("--json", "as_json", is_flag=True, help="JSON of the values, header and notes.")
@_QUIET
def export(**values: Any) -> None:
    """Print a plan of a saved front as a launch config.

    FRONT is a file that `autoshard solve --save` wrote. What the target cannot express is said on
    stderr, or is an error that names it.
    """
    from autoshard.export import export as print_config

    print_config(
        values["front"],
        stack=values["stack"],
        number=values["point"],
        within=values["within"],
        output=values["output"],
        as_json=values["as_json"],
        quiet=values["quiet"],
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
    from autoshard.report import narrow_table, render

    click.echo(render(*narrow_table(columns()), note))
