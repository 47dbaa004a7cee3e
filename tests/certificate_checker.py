"""Checks a certificate with code of its own: the space, the bounds and the exact answers.

Nothing here comes from the search. Rows are counted off from the rules of the declared space and
priced by the cost models; what the certificate says of a mesh must hold for each of its rows: first
by fractions of layers, and where these do not show it, by dealing whole layers.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from certificate_bounds import NOISE, Array, Dealing, Fractions
from oracle import columns, judge, legal_meshes

from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile

MESH = ("dp", "batch_split", "seq_split", "tp", "pp", "cp", "reshard", "pods", "layout")
KINDS = ("user", "peak", "memory", "mesh", "row", "stage", "exact", "chosen")
#: A bound reaches a claim if it is at most this much below it, relatively.
SLACK = 1e-6
#: A plan within a budget may come out as so much larger.
FLOAT = 1e-12


class RefusedError(Exception):
    """The certificate proves nothing; the message says why."""


def demand(holds: object, why: str) -> None:
    if not holds:
        raise RefusedError(why)


def read(path: Path) -> dict[str, Any]:
    """A certificate: its head, and its table under ``meshes``."""
    if path.suffix == ".json":
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    head = json.loads(pl.read_parquet_metadata(path)["autoshard"])
    return {**head, "meshes": pl.read_parquet(path).to_dict(as_series=False)}


def check(data: dict[str, Any], problem: Problem, profile: Profile) -> int:
    """Refuse what does not prove its points; returns how many answers took dealing."""
    points, table = data["points"], data["meshes"]
    check_problem(data["problem"], problem)
    rows = [row for row in legal_meshes(problem) if profile.virtual or row["vpp"] == 1]
    place = {mesh: n for n, mesh in enumerate(zip(*(table[name] for name in MESH), strict=True))}
    demand(len(place) == len(table["dp"]), "a mesh is there twice")
    meshes = [tuple(row[name] for name in MESH) for row in rows]
    demand(set(meshes) == set(place), "a mesh is missing, or is none of the space")
    which = np.array([place[mesh] for mesh in meshes])
    by = np.array([table[f"by_{k}"] for k in range(len(points))]).T
    said = [table[f"bound_s_{k}"] for k in range(len(points))]
    bound = np.array([[np.nan if b is None else float(b) for b in column] for column in said]).T
    least = np.array([0.0 if b is None else b for b in table["least_bytes"]])
    demand(np.isin(by, KINDS).all(), "a bound is of an unknown kind")
    user = by == "user"
    for k, point in enumerate(points):
        check_point(problem, profile, point, data["gap"], list(place)[point["mesh"]])
        demand(np.nonzero(by[:, k] == "chosen")[0].tolist() == [point["mesh"]], "not one is chosen")
        enough = user[:, k] | (bound[:, k] >= point["lower_bound_s"] * (1.0 - SLACK))
        demand(enough.all(), f"a mesh is not excluded at point {k}")
    chips = np.prod([np.array(table[name]) for name in MESH[:6]], axis=0)
    peak_s = profile.compute.flops_per_step(problem) / (problem.peak_flops_per_s * chips)
    above = (by == "peak") & (bound > peak_s[:, None] * (1.0 + NOISE))
    demand(not above.any(), "a bound is above the chips' peak")
    kept = wanted(rows, data["problem"]["where"], data["problem"].get("fix") or {})
    demand(not user[which[kept]].any(), "the user's constraint leaves a plan of a mesh")
    ask = ~np.isin(by, ("user", "peak"))
    kept = kept[ask[which[kept]].any(axis=1)]
    dealt = 0
    for start in range(0, len(kept), 2**14):
        piece = kept[start : start + 2**14]
        group, mesh = columns([rows[n] for n in piece]), which[piece]
        costs = profile.price(problem, group)
        schedules = zip(group.pp, group.vpp, group.microbatches, strict=True)
        held = [profile.pipeline.in_flight(*map(int, schedule)) for schedule in schedules]
        low = Fractions(costs, held, group.vpp, problem.model.n_layers)
        exact: dict[int, Dealing] = {}
        demand(not low.fits(least[mesh] * (1.0 - NOISE)).any(), "a least memory is too large")
        for k, point in enumerate(points):
            budget = np.full(len(piece), point["memory_bytes"] * (1.0 + FLOAT))
            claim = bound[mesh, k] * (1.0 - NOISE)
            open_ = ask[mesh, k] & low.fits(budget) & (low.least_s(budget) < claim)
            for n in np.nonzero(open_)[0].tolist():
                if n not in exact:
                    exact[n] = Dealing(costs.take([n]), held[n], int(group.vpp[n]), low.n)
                faster = exact[n].beats(float(budget[n]), float(claim[n]))
                demand(not faster, f"a plan of {meshes[piece[n]]} beats its bound at point {k}")
                dealt += 1
    return dealt


def check_problem(said: dict[str, Any], asked: Problem) -> None:
    for part in ("model", "workload", "recipe", "cluster"):
        values = json.loads(json.dumps(asdict(getattr(asked, part))))
        values.get("chip", {}).pop("sources", None)
        demand(values.items() <= said[part].items(), f"the {part} is another")
    demand(said["capacity_bytes"] == asked.capacity_bytes, "the capacity is another")


def check_point(
    problem: Problem, profile: Profile, point: dict[str, Any], gap: float, mesh: tuple[int, ...]
) -> None:
    """The plan costs what it says, and is as near to its bound as it says."""
    took, size, plan = point["step_time_s"], point["memory_bytes"], point["plan"]
    demand(mesh[:-1] == tuple(plan[name] for name in MESH[:-1]), "a plan is of another mesh")
    dealt = [[stage.get(rung.name, 0) for rung in profile.ladder] for stage in plan["remat"]]
    found = judge(problem, profile, plan | {"layout": mesh[-1]}, dealt)
    demand(np.allclose(found, (took, size), rtol=SLACK), "a plan does not cost what it says")
    demand(size <= problem.capacity_bytes * (1.0 + NOISE), "a plan does not fit")
    demand(abs(took / point["lower_bound_s"] - 1.0 - point["gap"]) < SLACK, "a gap is wrong")
    demand(point["proven"] == (point["gap"] <= gap + SLACK), "what is proven is not")


def wanted(rows: list[dict[str, int]], where: str | None, fix: dict[str, int]) -> Array:
    """Rows that the user's constraint leaves."""
    frame = pl.DataFrame(rows).with_columns(ep=1, fsdp=pl.col("batch_split") * pl.col("seq_split"))
    used = pl.col("dp") * pl.col("fsdp") * pl.col("tp") * pl.col("pp") * pl.col("cp")
    kept = frame.with_columns(chips_used=used).select(pl.sql_expr(where or "dp > 0").alias("kept"))
    mask = kept["kept"].to_numpy().copy()
    for name, value in fix.items():
        mask &= frame.with_columns(chips_used=used)[name].to_numpy() == value
    left: Array = np.nonzero(mask)[0]
    return left
