"""What a launch config says of a plan, and the words that readers of all formats share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from autoshard.costmodels.checks import LARGEST_COUNT, shown
from autoshard.costmodels.errors import SpecError


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPlan:
    """What a launch config says of a plan, in autoshard's words.

    None where neither the config nor its framework's default says it: Megatron's data ranks are
    what the world leaves, so that ``fsdp`` is not known before ``chips`` is.

    ``fsdp`` are the shards that ``reshard`` (the ZeRO stage; None where nothing is sharded) shards
    over; ``dp`` are replicas of those. ``fsdp`` counts ``seq_split``, the ranks that gather keys
    and values of one sequence, as :class:`~autoshard.costmodels.plan.Plan` does; ``cp`` are ranks
    that ring them. ``microbatches`` are those of one data shard, of ``micro_batch_size`` sequences
    before ``seq_split`` and ``cp``. ``remat`` is a rung of the framework's ladder
    (:mod:`autoshard.costmodels.ladders`), and ``remat_layers_per_chunk`` how many layers of each
    model chunk run under it where that is not all of them. ``chips`` is the world size.
    ``ignored`` names what the config says beside, which is no part of a plan.
    """

    framework: str
    tp: int | None = None
    pp: int | None = None
    vpp: int | None = None
    cp: int | None = None
    dp: int | None = None
    fsdp: int | None = None
    seq_split: int | None = None
    micro_batch_size: int | None = None
    microbatches: int | None = None
    global_batch_seqs: int | None = None
    seq_len: int | None = None
    reshard: int | None = None
    layers_per_stage: tuple[int, ...] | None = None
    remat: str | None = None
    remat_layers_per_chunk: int | None = None
    chips: int | None = None
    ignored: tuple[str, ...] = ()


def whole(name: str, value: Any) -> int:
    """A count out of a config.

    Raises:
        SpecError: it is no whole number, below one, or beyond any real size.
    """
    try:
        number = int(value) if isinstance(value, str) else value
    except ValueError:
        number = None
    if isinstance(number, bool) or not isinstance(number, int):
        raise SpecError(f"{name} must be a whole number, got {shown(value)}.")
    if not 1 <= number <= LARGEST_COUNT:
        raise SpecError(f"{name} must be at least 1 and at most 2**40, got {shown(number)}.")
    return number


def part(total: int, of: int, message: str) -> int:
    """``total / of`` where that is whole and not zero.

    Raises:
        SpecError: it is not; ``message`` says so.
    """
    quotient, rest = divmod(total, of)
    if rest or not quotient:
        raise SpecError(message)
    return quotient


@dataclass(frozen=True, slots=True)
class Said:
    """The flags of a command line with their words; a flag alone has none."""

    words: Mapping[str, list[str]]

    def __contains__(self, flag: str) -> bool:
        return flag in self.words

    def word(self, flag: str) -> str:
        """The one word of a flag.

        Raises:
            SpecError: it has none or several.
        """
        words = self.words[flag]
        if len(words) != 1:
            raise SpecError(f"{flag} takes one value, got {len(words)}.")
        return words[0]

    def number(self, flag: str, default: int | None = None) -> int | None:
        """The whole number of a flag; the default where it is not given.

        Raises:
            SpecError: it is no positive whole number.
        """
        return whole(flag, self.word(flag)) if flag in self.words else default


def check_spelling(framework: str, name: str, known: Iterable[str]) -> None:
    """Refuse a name that is all but one of those of a plan: it would be ignored.

    Raises:
        SpecError: it is; the name that was meant is in the message.
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.9)
    if near:
        raise SpecError(f"{framework} has no {name}: did you mean {near[0]}?")
