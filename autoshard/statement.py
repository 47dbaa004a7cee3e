"""How a framework can state a plan, and the words for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """How one framework can state a plan.

    ``verdict`` is ``exact``, ``rounded`` or ``no``; ``why`` are the rules that the plan breaks, in
    sentences, none where it is exact. What is stated: ``layers_per_stage``, and ``remat`` in the
    names of the framework, for each stage; empty where nothing is. ``step_time_s`` and
    ``memory_bytes`` are what the front's costs say of it, ``slower`` how much more time than the
    plan's that is, relatively; None where nothing is stated. ``unpriced`` are remat settings of the
    framework that the front's costs have no price for: rounding may cost less with one of them.
    """

    verdict: str
    why: tuple[str, ...] = ()
    layers_per_stage: tuple[int, ...] = ()
    remat: tuple[Mapping[str, int], ...] = ()
    step_time_s: float | None = None
    memory_bytes: float | None = None
    slower: float | None = None
    unpriced: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The statement as plain values."""
        listed = {name: list(getattr(self, name)) for name in _LISTS}
        return asdict(self) | listed | {"remat": [dict(stage) for stage in self.remat]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Statement:
        """The inverse of :meth:`to_dict`.

        Raises:
            TypeError: a key is unknown.
        """
        return cls(**{**data, **{name: tuple(data[name]) for name in _LISTS}})


_LISTS = ("why", "layers_per_stage", "remat", "unpriced")


def statement_words(found: Mapping[str, Statement]) -> str:
    """In which stacks a plan can be stated, in which not and why; empty where nothing is known.

    ``can be stated in megatron (rounded: 0.8 % slower), maxtext (exact); not in torchtitan: ...``
    """
    stated = [f"{name} ({_how(said)})" for name, said in found.items() if said.verdict != "no"]
    lacking: dict[str, list[str]] = {}
    for name, said in found.items():
        if said.verdict == "no":
            lacking.setdefault(said.why[-1], []).append(name)
    parts = [f"in {', '.join(names)}: {why}" for why, names in lacking.items()]
    if stated:
        return "; not ".join([f"can be stated in {', '.join(stated)}", *parts])
    return f"cannot be stated {'; nor '.join(parts)}" if parts else ""


def _how(said: Statement) -> str:
    if said.verdict == "exact":
        return said.verdict
    slower = said.slower or 0.0
    most = "at most " if said.unpriced else ""
    return f"rounded: {most}{slower * 100:.1f} % slower" if slower >= 5e-4 else "rounded at no cost"
