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
from certificate_bounds import NOISE, Array, Dealings, Fractions
from certificate_rules import FRAMEWORKS, Framework, one_setting
from oracle import columns, holds_chunks, judge, legal_meshes

from autoshard.costmodels.problem import Problem
from autoshard.costmodels.profile import Profile

MESH = ("dp", "batch_split", "seq_split", "tp", "pp", "cp", "reshard", "pods", "layout")
KINDS = (
    "user",
    "rule",
    "chips",
    "peak",
    "memory",
    "limit",
    "mesh",
    "row",
    "stage",
    "exact",
    "chosen",
)
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
    framework = framework_of(data["problem"], profile)
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
    user, rule, beyond = by == "user", by == "rule", by == "chips"
    chips = np.prod([np.array(table[name]) for name in MESH[:6]], axis=0)
    by_chips = "chips" in data["objectives"]
    most = [chips[point["mesh"]] if by_chips else np.inf for point in points]
    demand((chips[:, None] > most)[beyond].all(), "a mesh does not take too many chips")
    asked = Asked(problem, profile, data["problem"]["where"], data["problem"].get("fix") or {})
    for k, point in enumerate(points):
        check_point(problem, profile, point, data["gap"], list(place)[point["mesh"]])
        check_statement(problem, profile, framework, point["plan"])
        demand(np.nonzero(by[:, k] == "chosen")[0].tolist() == [point["mesh"]], "not one is chosen")
        demand(asked.allows(point), "the user's constraint excludes a plan")
        enough = (user | rule | beyond)[:, k] | (
            bound[:, k] >= point["lower_bound_s"] * (1.0 - SLACK)
        )
        demand(enough.all(), f"a mesh is not excluded at point {k}")
    peak_s = profile.compute.flops_per_step(problem) / (problem.peak_flops_per_s * chips)
    above = (by == "peak") & (bound > peak_s[:, None] * (1.0 + NOISE))
    demand(not above.any(), "a bound is above the chips' peak")
    stated = np.array([framework.states(problem, row) for row in rows])
    demand(not rule[which[stated]].any(), "the framework can state a plan of a mesh")
    latest_s, most_bytes = asked.limits(rows)
    kept = np.nonzero((latest_s > 0) & (most_bytes > 0) & stated)[0]
    demand(not user[which[kept]].any(), "the user's constraint leaves a plan of a mesh")
    ask = ~np.isin(by, ("user", "rule", "chips", "peak"))
    kept = kept[ask[which[kept]].any(axis=1)]
    dealt = 0
    for start in range(0, len(kept), 2**14):
        piece = kept[start : start + 2**14]
        group, mesh = columns([rows[n] for n in piece]), which[piece]
        costs = profile.price(problem, group)
        schedules = zip(group.pp, group.vpp, group.microbatches, strict=True)
        held = [profile.pipeline.in_flight(*map(int, schedule)) for schedule in schedules]
        layers = problem.model.n_layers
        stages = [framework.dealt(layers, pp) for pp in group.pp.tolist()]
        low = Fractions(costs, held, group.vpp, layers, stages)
        exact: dict[int, Dealings] = {}
        demand(not low.fits(least[mesh] * (1.0 - NOISE)).any(), "a least memory is too large")
        for k, point in enumerate(points):
            budget = np.minimum(point["memory_bytes"] * (1.0 + FLOAT), most_bytes[piece])
            claim = np.minimum(bound[mesh, k], latest_s[piece]) * (1.0 - NOISE)
            open_ = ask[mesh, k] & low.fits(budget) & (low.least_s(budget) < claim)
            for n in np.nonzero(open_)[0].tolist():
                if n not in exact:
                    whole = (costs.take([n]), held[n], int(group.vpp[n]), low.n)
                    exact[n] = Dealings(*whole, framework.remat, stages[n])
                faster = exact[n].beats(float(budget[n]), float(claim[n]))
                demand(not faster, f"a plan of {meshes[piece[n]]} beats its bound at point {k}")
                dealt += 1
    return dealt


def framework_of(said: dict[str, Any], profile: Profile) -> Framework:
    """The framework whose plans the front is of, with the remat settings that it has."""
    name = said["costs"].get("plans_of")
    demand(name in FRAMEWORKS, "no such framework is known")
    framework = FRAMEWORKS[name]
    ladder = tuple(rung.name for rung in profile.ladder)
    demand(name is None or ladder == framework.settings, "the remat settings are others")
    return framework


def check_statement(
    problem: Problem, profile: Profile, framework: Framework, plan: dict[str, Any]
) -> None:
    """The framework can state the plan."""
    demand(framework.states(problem, plan), "the framework cannot state a plan")
    dealt = [[stage.get(rung.name, 0) for rung in profile.ladder] for stage in plan["remat"]]
    one = one_setting(framework.remat, len(profile.ladder), dealt, plan["vpp"])
    demand(one, "a plan mixes remat settings")
    stages = framework.dealt(problem.model.n_layers, plan["pp"])
    layers = [sum(stage) for stage in dealt]
    demand(stages is None or layers == stages, "a plan has other stages than its framework deals")


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
    demand(holds_chunks([sum(stage) for stage in dealt], plan["vpp"]), "chunks are uneven")
    found = judge(problem, profile, plan | {"layout": mesh[-1]}, dealt)
    demand(np.allclose(found, (took, size), rtol=SLACK), "a plan does not cost what it says")
    demand(size <= problem.capacity_bytes * (1.0 + NOISE), "a plan does not fit")
    demand(abs(took / point["lower_bound_s"] - 1.0 - point["gap"]) < SLACK, "a gap is wrong")
    demand(point["proven"] == (point["gap"] <= gap + SLACK), "what is proven is not")


class Asked:
    """The user's constraint, also on what plans cost: how late and how large a row may be.

    Conditions on costs hold up to some time and some memory, so that these are found by bisection.
    """

    def __init__(
        self, problem: Problem, profile: Profile, where: str | None, fix: dict[str, int]
    ) -> None:
        self.tokens = problem.workload.global_batch_tokens
        self.peak_s = profile.compute.flops_per_step(problem) / problem.peak_flops_per_s
        self.where, self.fix = pl.sql_expr(where or "dp > 0"), fix

    def frame(self, rows: list[dict[str, Any]]) -> pl.DataFrame:
        """Every column that a constraint can name, but for costs."""
        names = (*MESH[:6], "pods", "reshard", "vpp", "microbatches", "micro_batch_size")
        integers = pl.DataFrame([{name: row[name] for name in names} for row in rows])
        fsdp = pl.col("batch_split") * pl.col("seq_split")
        used = pl.col("dp") * fsdp * pl.col("tp") * pl.col("pp") * pl.col("cp")
        return integers.with_columns(ep=1, fsdp=fsdp, chips_used=used)

    def holds(self, frame: pl.DataFrame, time_s: Array, size: Array) -> Array:
        """Whether plans of such a time and memory satisfy it."""
        costs = frame.with_columns(
            step_time_s=time_s,
            tokens_per_s=self.tokens / time_s,
            mfu=self.peak_s / (time_s * frame["chips_used"].to_numpy()),
            memory_bytes=size,
            memory_gib=size / 2**30,
        )
        kept: Array = costs.select(self.where.alias("kept"))["kept"].to_numpy().copy()
        for name, value in self.fix.items():
            kept &= frame[name].to_numpy() == value
        return kept

    def allows(self, point: dict[str, Any]) -> bool:
        """Whether a plan that was found satisfies it."""
        time_s, size = np.array([point["step_time_s"]]), np.array([point["memory_bytes"]])
        return bool(self.holds(self.frame([point["plan"]]), time_s, size)[0])

    def limits(self, rows: list[dict[str, int]]) -> tuple[Array, Array]:
        """The latest time and the most memory of each row; infinite for any, zero for none."""
        frame = self.frame(rows)
        if not set(self.where.meta.root_names()) - set(frame.columns):
            nothing = np.ones(len(rows))
            either = np.where(self.holds(frame, nothing, nothing), np.inf, 0.0)
            return either, either
        short, small = np.full(len(rows), 1e-12), np.full(len(rows), 1e-3)

        def last(ask: Any) -> Array:
            low, high = short.copy(), np.full(len(rows), 1e24)
            always, ever = ask(high), ask(low)
            while (high > low * (1.0 + FLOAT)).any():
                middle = np.sqrt(low * high)
                kept = ask(middle)
                low, high = np.where(kept, middle, low), np.where(kept, high, middle)
            return np.where(always, np.inf, np.where(ever, high, 0.0))

        latest_s = last(lambda time_s: self.holds(frame, time_s, small))
        return latest_s, last(lambda size: self.holds(frame, short, size))
