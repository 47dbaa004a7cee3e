"""The integer search: space, bounds, CP-SAT, front. Imports ``autoshard.costmodels`` only."""

if __name__ != "autoshard.search":
    raise ImportError("search/ is the source of autoshard.search: import it by that name")
