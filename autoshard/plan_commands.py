"""Bodies of commands about plans in hand: from options to what is printed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click
from click.core import ParameterSource

from autoshard.app import say
from autoshard.options import cost_profile, problem_arguments, search_arguments
from autoshard.progress import Progress


def evaluate(values: Mapping[str, Any]) -> str:
    """What ``autoshard evaluate`` prints."""
    from autoshard.evaluating import evaluate as price

    launched = values["config"] is not None or bool(values["arguments"])
    if launched == (values["plan"] is not None):
        raise click.UsageError(
            "say one plan: its values as --plan, a launch config as --config FILE, or the "
            "arguments of a launch after --."
        )
    plan = values["plan"]
    if launched:
        from autoshard.catalog import load_model
        from autoshard.launched import read_launch

        n_layers = load_model(values["model"]).n_layers
        plan = read_launch(values["stack"], values["arguments"], values["config"], n_layers)
    profile = cost_profile(values)
    asked = problem_arguments(values, profile)
    context = click.get_current_context()
    if context.get_parameter_source("seq_len") is ParameterSource.DEFAULT:
        del asked["seq_len"]  # a launch config may say another
    with Progress(quiet=values["quiet"]) as progress:
        found = price(
            plan,
            values["model"],
            **asked,
            costs=profile,
            **search_arguments(values),
            progress=progress.tell,
            optimum=not values["no_solve"],
        )
    if found.optimum is not None and not found.optimum.complete and not values["quiet"]:
        say("warning", "the search was stopped: a faster plan than the one shown may exist.")
    if values["as_json"]:
        return json.dumps(found.to_dict(), indent=2)
    from autoshard.evaluating_report import evaluation_report

    return evaluation_report(found)


def diff(a: str, b: str, *, as_json: bool) -> str:
    """What ``autoshard diff`` prints."""
    from autoshard.differing import diff as compare
    from autoshard.differing import read_side

    found = compare(read_side(a), read_side(b))
    if as_json:
        return json.dumps(found.to_dict(), indent=2)
    from autoshard.differing_report import difference_report

    return difference_report(found)


def sensitivity(values: Mapping[str, Any]) -> str:
    """What ``autoshard sensitivity`` prints."""
    from autoshard.sensing import sensitivity as sense

    profile = cost_profile(values)
    with Progress(quiet=values["quiet"]) as progress:
        found = sense(
            values["model"],
            **problem_arguments(values, profile),
            costs=profile,
            **search_arguments(values),
            progress=progress.tell,
        )
    if values["as_json"]:
        return json.dumps(found.to_dict(), indent=2)
    from autoshard.sensing_report import sensitivity_report

    return sensitivity_report(found, tokens=values["tokens"])


def validate_compilers(values: Mapping[str, Any]) -> str:
    """What ``autoshard validate --compilers`` prints."""
    context = click.get_current_context()
    for name in ("measurements", "costs", "calibration", "html"):
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise click.UsageError(
                f"--{name} is about measured runs, and --compilers about compiled plans: leave out "
                "one of them."
            )
    from autoshard.compiler_report import compilers_dict, compilers_report
    from autoshard.compiler_verdict import judge, load_records

    verdict = judge(load_records())
    if values["as_json"]:
        return json.dumps(compilers_dict(verdict), indent=2)
    return compilers_report(verdict)
