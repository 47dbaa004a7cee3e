"""What a report says beside its pictures: what was assumed, with sources, and how far it is off."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from autoshard.columns import Column
from autoshard.costmodels.chip import Chip
from autoshard.costmodels.errors import SpecError
from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile
from autoshard.sizes import format_bytes
from autoshard.words import count_words, percent

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """A heading, what is said under it, and tables with what is said of each."""

    head: str
    said: Sequence[str]
    tables: Sequence[tuple[str, Sequence[Column]]]


def assumptions(problem: Problem, profile: Profile) -> Facts:
    """The chip with the source of each figure, the cost models, and what is stored."""
    recipe, work = problem.recipe, problem.workload
    stages = " or ".join(f"ZeRO-{stage}" for stage in recipe.reshard)
    rungs = ", ".join(rung.name for rung in profile.ladder)
    return Facts(
        head="Assumptions and their sources",
        said=(
            f"A step trains {count_words(work.global_batch_tokens)} tokens in sequences of "
            f"{work.seq_len:,}, in {work.precision}, of {problem.model.name} with "
            f"{problem.model.total_params / 1e9:,.1f}B parameters.",
            f"A parameter takes {recipe.param_bytes:g} bytes, its gradient {recipe.grad_bytes:g} "
            f"and its optimizer state {recipe.optimizer_bytes:g}; {stages}. A plan may use "
            f"{format_bytes(problem.capacity_bytes)} of a chip.",
            f"Remat rungs that a layer may run: {rungs}.",
        ),
        tables=(
            (f"{problem.cluster.chip.name}, as its data sheets have it", chip_columns(problem)),
            (
                f"Cost models: {profile.name}"
                + (f", {profile.description}" if profile.description else ""),
                model_columns(profile),
            ),
        ),
    )


def chip_columns(problem: Problem) -> list[Column]:
    """The figures of the chip, and where each is from.

    A figure that is not that of the preset of the same name is the user's own.
    """
    chip = problem.cluster.chip
    known = _preset(chip.name)
    names, values, sources = [], [], []
    for field in fields(Chip):
        value = getattr(chip, field.name)
        if field.name in ("name", "kind", "sources") or not value:
            continue
        preset = known is not None and getattr(known, field.name) == value
        source = known.sources.get(field.name, "") if preset and known is not None else ""
        if not source and field.name in _PLAIN:
            continue
        names.append(_CHIP_WORDS.get(field.name, field.name))
        values.append(_chip_value(field.name, value))
        sources.append(source or ("preset" if preset else "given with the problem"))
    return [
        Column(head="figure", cells=tuple(names), left=True),
        Column(head="value", cells=tuple(values)),
        Column(head="source", cells=tuple(sources), left=True),
    ]


def _preset(name: str) -> Chip | None:
    """The chip that comes with autoshard under a name."""
    from autoshard.catalog import load_chip

    try:
        return load_chip(name)
    except SpecError:
        return None


#: Fields with a default that says nothing unless somebody has a source for it.
_PLAIN = ("wrap", "oversubscription")
_CHIP_WORDS = {
    "flops_per_s": "dense peak",
    "hbm_bytes": "HBM",
    "hbm_bytes_per_s": "HBM bandwidth",
    "pod_axes": "largest torus",
    "wrap": "wrap-around",
    "ici_bytes_per_s": "ICI, an axis, both ways",
    "dcn_bytes_per_s": "DCN between pods, a chip",
    "domain_chips": "chips of an NVLink domain",
    "domain_bytes_per_s": "NVLink, a chip, one way",
    "scale_out_bytes_per_s": "scale-out, a chip, one way",
    "pod_chips": "chips of a full-bisection block",
    "oversubscription": "oversubscription between blocks",
}


def _chip_value(name: str, value: object) -> str:
    """A figure of a chip for people."""
    if isinstance(value, dict):
        return ", ".join(f"{kind} {rate / 1e12:,.4g} TFLOP/s" for kind, rate in value.items())
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    if isinstance(value, (int, float)):
        if name.endswith("_bytes_per_s"):
            return f"{value / 1e9:,.4g} GB/s"
        return format_bytes(value) if name.endswith("_bytes") else f"{value:,.4g}"
    return str(value)


def model_columns(profile: Profile) -> list[Column]:
    """The five cost models: role, name, and what each says of itself."""
    said = [(inspect.getdoc(type(model)) or "").partition("\n\n")[0] for model in profile.models]
    words = [" ".join(text.replace("``", "").split()) for text in said]
    return [
        Column(head="role", cells=tuple(model.role for model in profile.models), left=True),
        Column(head="model", cells=tuple(model.name for model in profile.models), left=True),
        Column(head="what it does", cells=tuple(words), left=True),
    ]


def published_error(problem: Problem, profile: Profile) -> Facts:
    """How far the costs are off published runs on this chip, as ``autoshard validate`` judges.

    Each run is predicted by constants that have not seen its source. The textbook is judged as it
    is; costs of someone else's are not judged.
    """
    from autoshard.validate_tables import errors

    head, chip = "Published error of the cost models", problem.cluster.chip
    family = profile.name.partition("/")[0]
    if family not in ("calibrated", "textbook"):
        unjudged = f"The costs {profile.name} were not held against published runs."
        return Facts(head=head, said=(unjudged,), tables=())
    judged = _judged(family)
    own = errors(judged.filter(chip=chip.name), "chip", "precision", "stack")
    kind = errors(judged.filter(kind=chip.kind), "kind")
    table = [
        Column(head="chip", cells=tuple(own["chip"]), left=True),
        Column(head="precision", cells=tuple(own["precision"]), left=True),
        Column(head="stack", cells=tuple(own["stack"]), left=True),
        Column(head="runs", cells=tuple(f"{n:,}" for n in own["rows"])),
        *(
            Column(head=words, cells=tuple(f"{share * 100:.1f} %" for share in own[name]))
            for name, words in (("median", "median error"), ("p90", "90th percentile"))
        ),
        Column(head="bias", cells=tuple(f"{share * 100:+.1f} %" for share in own["bias"])),
    ]
    how = (
        "each predicted by constants that have not seen its source"
        if family == "calibrated"
        else "against a roofline without latency or inefficiency, which is what these costs are"
    )
    row = kind.row(0, named=True)
    said = [
        f"Step times of {row['rows']:,} published runs on {chip.kind.upper()}s, {how}: off by "
        f"{percent(row['median'])} in the median, {percent(row['p90'])} at the 90th percentile, "
        f"bias {row['bias'] * 100:+.1f} % (positive: predicted too slow).",
    ]
    if not len(own):
        said.append(f"No published run is on {chip.name}: expect more than that.")
    if profile.origin.get("own"):
        said.append("These are of the constants that come with autoshard, not of a file of yours.")
    option = "" if family == "calibrated" else " --costs textbook"
    said.append(f"All rows: autoshard validate{option}.")
    return Facts(head=head, said=tuple(said), tables=(("", table),) if len(own) else ())


@functools.cache
def _judged(costs: str) -> pl.DataFrame:
    """The published runs that count, each with its prediction: the same at every call."""
    from autoshard.validating import validate

    return validate(costs=costs).scored
