"""What the rows of both tables have in common: tiers, flags, one candidate, one step time."""

from __future__ import annotations

import re

import numpy as np

from autoshard.costmodels.candidates import COLUMNS, Candidates
from autoshard.costmodels.model import Model
from autoshard.run_models import flops_per_token
from autoshard.run_table import Row
from autoshard.run_words import Unpriced

#: Rows that the sources or a first calibration found at odds with their neighbours.
KNOWN_OUTLIERS = frozenset(
    {
        "vt-016",  # twice the time of half the microbatch
        "nt-020",  # four times the time of the same model on twice the chips
        "mt-v5p-128b-2x512",  # 13 % below one slice, where other pairs lose 3 to 6 %
        "mt-v5p-1024b-1x2048",  # 15 % below the same model on twice the chips
        "mt-v4-52b-2x384",  # two slices faster than one: its source calls it a quirk
    }
)

#: Words in the notes, and the flag that they set.
_FLAGS = (
    (r"offload\b.*\d+ layers|host offload", "host-offload"),
    (r"last logged step", "last-logged-step"),
    (r"cuda_launch_blocking=1", "launch-blocking"),
    (r"2nd iteration only", "second-iteration"),
    (r"proxy", "proxy-layers"),
    (r"random routing", "random-routing"),
    (r"sft packed|packed sequences", "packed-sequences"),
    (r"layers not divisible", "uneven-stages"),
    (r"power limited", "power-limited"),
    (r"superseded", "superseded"),
    (r"early step|log line is step [123]\b", "early-step"),
    (r"best step|as high as", "best-step"),
    (r"no causal load balancing", "no-load-balancing"),
    (r"split: inferred|tp/pp of the ptd rows inferred", "mesh-assumed"),
    (r"third-party", "third-party"),
    (r"\bapproximate\b|\bwip\b", "approximate"),
)

#: With one of these, a run is shown but does not count: what each says.
NOT_SCORED = {
    "power-limited": "its chips ran below their power",
    "early-step": "the time is that of one of the first steps",
    "best-step": "the time is that of the best step",
    "approximate": "its figures are approximate",
    "assumed": "its microbatch and recompute are assumed",
    "mlp-assumed": "its model is not known by name, so whether the MLP is gated is a guess",
    "dcn-fsdp": "its weights are sharded across slices, which is not modelled",
    "ring-attention": "ring attention over ranks that also shard weights is not modelled",
    "mesh-assumed": "its mesh is inferred",
}


def flags_of(row: Row) -> tuple[str, ...]:
    """What the notes say that is unusual."""
    notes = row.words("notes")
    flags = [flag for words, flag in _FLAGS if re.search(words, notes)]
    if row.id in KNOWN_OUTLIERS:
        flags.append("known-outlier")
    return tuple(flags)


def needed(row: Row, column: str, reason: str) -> int:
    """A count that must be there and positive.

    Raises:
        Unpriced: it is blank or zero.
    """
    value = row.count(column)
    if not value:
        raise Unpriced(reason, f"{column} is not stated.")
    return value


def one_candidate(**degrees: int) -> Candidates:
    """A table of one plan; degrees left out are one, the layout the first."""
    values = {name: degrees.get(name, 0 if name == "layout" else 1) for name in COLUMNS}
    return Candidates(**{k: np.array([v], dtype=np.int64) for k, v in values.items()})


def per_microbatch(batch: int, ranks: int, micro: int) -> int:
    """Microbatches of one rank.

    Raises:
        Unpriced: the batch is not whole microbatches of all ranks.
    """
    count, rest = divmod(batch, ranks * micro)
    if rest or not count:
        raise Unpriced(
            "batch does not divide",
            f"{batch} sequences are not microbatches of {micro} on each of {ranks} data ranks.",
        )
    return count


def step_time(
    row: Row, model: Model, tokens: int, chips: int
) -> tuple[float | None, tuple[str, ...]]:
    """Seconds of a step: stated, or out of tokens/s, the notes, or TFLOP/s; and how, as flags.

    None where the run ran out of memory.

    Raises:
        Unpriced: no throughput, or TFLOP/s under an unclear convention.
    """
    if row.out_of_memory:
        return None, ()
    stated, rate = row.number("step_time_s"), row.number("tokens_per_s_per_chip")
    if stated:
        return stated, ()
    if rate:
        return tokens / (rate * chips), ()
    noted = re.search(r"derived[^;]*: step ?[≈~=] ?(\d+(?:\.\d+)?) ?s\b", row.text("notes"))
    if noted and float(noted[1]) > 0:
        return float(noted[1]), ("derived-step",)
    tflops = row.number("tflops_per_chip")
    if tflops:
        flops = flops_per_token(model, tokens_of(row), row.text("tflops_convention"))
        if flops:
            return tokens * flops / (tflops * 1e12 * chips), ("derived-step",)
        raise Unpriced("no throughput", "TFLOP/s under a convention that is not clear.")
    raise Unpriced("no throughput", "neither time, nor tokens/s, nor TFLOP/s is stated.")


def tokens_of(row: Row) -> int:
    """Tokens of one sequence.

    Raises:
        Unpriced: not stated.
    """
    return needed(row, "seq_len", "shape not stated")
