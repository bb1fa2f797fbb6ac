"""Overload of four pools in virtual time, priced by the tables beside the packaged checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from models.registry import find
from schedulers.bending import limits_of
from schedulers.lab.overload import UNIT, Outcome, Pool, arrivals, replay
from schedulers.plan import Cost, Point
from serving.bending import bends_after_s
from serving.config.sections import BendingSettings
from serving.operating_points import dearest_seconds, load_table, planned_points, usual_work

LOADS = (0.8, 1.2, 2.0, 3.0)
SEEDS = (1, 2)
#: Model, replicas (of a chat: answers at a time), latency that half of the requests ask for, patience of the others,
#: most that wait, length of a trace; all times in seconds.
POOLS: tuple[tuple[str, int, float, float, int, float], ...] = (
    ("dyn-perceiver-nano", 1, 0.25, 30.0, 512, 4.0),
    ("texthawk2-nano", 8, 5.0, 30.0, 256, 300.0),
    ("dit-moe-nano", 2, 5.0, 60.0, 256, 60.0),
    ("vdit-nano", 2, 60.0, 600.0, 256, 1500.0),
)
HEADER = (
    "model, load", "side", "bends after, s", "in time/s", "of its peak", "in time", "expired", "refused", "quality",
    "gave way: low, normal, high", "greedy, steady, modest", "levels changed",
)  # fmt: skip


def pool_of(model: str, replicas: int, budget_s: float, patience_s: float, max_waiting: int) -> Pool:
    """A request of the usual size at each calibrated point, as it is charged. Quality bends as it does by default
    at a gateway whose room, or queue of jobs, takes ``max_waiting``."""
    family, variant = find(model)
    work = usual_work(family, variant)
    points = []
    for point in planned_points(load_table(variant)):
        seconds = {UNIT: point.cost.busy(work(point.settings))}
        cost = Cost(latency_s=seconds, busy_s=seconds, watts=point.cost.watts)
        points.append(Point(name=point.name, settings=point.settings, cost=cost, quality=point.quality))
    usual_s = dearest_seconds(points, lambda settings: {UNIT: 1.0}) / replicas
    after_s = bends_after_s(BendingSettings(), family.shape, usual_s, gateways=1, room=max_waiting)
    return Pool(
        name=model,
        points=tuple(points),
        replicas=replicas,
        budget_s=budget_s,
        patience_s=patience_s,
        max_waiting=max_waiting,
        limits=limits_of(after_s),
    )


def simulate() -> list[dict[str, Any]]:
    """A row for each pool, load and side: means over the seeds."""
    rows = []
    for *facts, seconds in POOLS:
        pool = pool_of(*facts)  # type: ignore[arg-type]
        for load in LOADS:
            traces = [list(arrivals(pool, load, seconds, seed)) for seed in SEEDS]
            for side, bends in (("fixed", False), ("bending", True)):
                rows.append(_row(pool, load, side, seconds, [replay(pool, trace, bends=bends) for trace in traces]))
    for row in rows:
        mine = [other["good_per_s"] for other in rows if (other["model"], other["side"]) == (row["model"], row["side"])]
        row["of_peak"] = row["good_per_s"] / max(mine)
    return rows


def _row(pool: Pool, load: float, side: str, seconds: float, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    sent = sum(one.sent for one in outcomes)
    good = sum(one.good for one in outcomes)
    whose = ("low", "normal", "high", "greedy", "steady", "modest")
    return {
        "model": pool.name,
        "capacity_per_s": pool.capacity,
        "load": load,
        "side": side,
        "good_per_s": good / seconds / len(outcomes),
        "good_share": good / sent,
        "expired_share": sum(one.expired for one in outcomes) / sent,
        "refused_share": sum(one.refused for one in outcomes) / sent,
        "mean_quality": sum(one.quality for one in outcomes) / max(1, good),
        "bent_share": {name: fmean(one.bent_share(name) for one in outcomes) for name in whose},
        "bends_after_s": pool.limits.rise_s,
        "level_changes": fmean(one.num_changes for one in outcomes),
    }


def cells(row: dict[str, Any]) -> list[object]:
    """Of the table."""
    bent = [f"{share:.0%}" for share in row["bent_share"].values()]
    return [
        f"{row['model']}, {row['load']:g}x", row["side"], f"{row['bends_after_s']:.2g}", f"{row['good_per_s']:.3g}",
        f"{row['of_peak']:.0%}", f"{row['good_share']:.1%}", f"{row['expired_share']:.1%}",
        f"{row['refused_share']:.1%}", f"{row['mean_quality']:.3f}", ", ".join(bent[:3]), ", ".join(bent[3:]),
        f"{row['level_changes']:.0f}",
    ]  # fmt: skip
