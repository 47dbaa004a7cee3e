"""Cost profiles and cost models by name: the built-in ones, and those that others publish.

A third party registers an entry point in the group ``autoshard.costmodels``; it loads to a
:class:`Profile`, to one cost model (any object with ``name``, ``role`` and ``covers``), or to a
function without arguments that returns either.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from autoshard.costmodels.calibrated import calibrated
from autoshard.costmodels.errors import CostModelError, UnknownName
from autoshard.costmodels.profile import CostModel, Profile
from autoshard.costmodels.stack import STACKS, default_stack
from autoshard.costmodels.textbook import textbook

GROUP = "autoshard.costmodels"

BUILT_IN: dict[str, Callable[[], Profile]] = {
    "textbook": textbook,
    **{f"calibrated/{name}": functools.partial(calibrated, name) for name in STACKS},
}


def published() -> dict[str, Any]:
    """Entry points of others by name, not loaded."""
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=GROUP)}


def profile_by_name(names: str, chip_kind: str = "gpu") -> Profile:
    """A profile from its name, with models of others in their roles: ``textbook,my-comms``.

    ``calibrated`` alone is that of the stack which ``chip_kind`` is most often used with.

    Raises:
        UnknownName: nobody registered a name.
        CostModelError: what a name loads is neither a profile nor a cost model.
    """
    first, *others = [name.strip() for name in names.split(",")]
    if first == "calibrated":
        first = f"calibrated/{default_stack(chip_kind).name}"
    base = _load(first)
    if not isinstance(base, Profile):
        base = textbook().replace(base)
    for name in others:
        base = base.replace(_load(name))
    return base


def _load(name: str) -> Any:
    if name in BUILT_IN:
        return BUILT_IN[name]()
    known = published()
    if name not in known:
        raise UnknownName("cost model", name, [*BUILT_IN, *known])
    try:
        loaded = known[name].load()
        if not isinstance(loaded, (Profile, CostModel)) or isinstance(loaded, type):
            loaded = loaded()
    except Exception as error:
        raise CostModelError(f"cost model {name!r} cannot be loaded: {error}.") from error
    return loaded
