"""The ``textbook`` profile: the scaling-book roofline, to the letter."""

from __future__ import annotations

from autoshard.costmodels.checks import check_one_of
from autoshard.costmodels.profile import Profile
from autoshard.costmodels.remat import TEXTBOOK_LADDER
from autoshard.costmodels.textbook_comms import TextbookComms
from autoshard.costmodels.textbook_compute import LAYERS, TextbookCompute
from autoshard.costmodels.textbook_memory import TextbookMemory
from autoshard.costmodels.textbook_overlap import RULES, TextbookOverlap
from autoshard.costmodels.textbook_pipeline import OneForwardOneBackward


def textbook(*, layer: str = "full", overlap: str = "max") -> Profile:
    """The textbook profile.

    Args:
        layer: ``full``, or ``mlp2`` for the two-matrix layer of training.md.
        overlap: ``max`` (second and third edition) or ``sum`` (first edition).

    Raises:
        SpecError: an option is unknown.
    """
    check_one_of("textbook profile", "layer", layer, LAYERS)
    check_one_of("textbook profile", "overlap", overlap, RULES)
    return Profile(
        name="textbook",
        compute=TextbookCompute(layer=layer),
        comms=TextbookComms(layer=layer),
        overlap=TextbookOverlap(rule=overlap),
        memory=TextbookMemory(),
        pipeline=OneForwardOneBackward(),
        ladder=TEXTBOOK_LADDER,
        description="scaling-book roofline: no latency, no inefficiency, communication hidden by "
        "the book's rule",
    )
