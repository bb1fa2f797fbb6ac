"""Overload of four models in virtual time, one at a time, on the replicas and at the costs of the packaged checkpoints.

Both sides are served in the same way, by the kernels that serve; on one of them quality gives way to load.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from random import Random
from statistics import fmean
from typing import Any

from models.registry import find
from schedulers.lab.cluster import OURS, System, simulate_system
from schedulers.lab.outcomes import Outcome
from schedulers.lab.served import ServedModel
from schedulers.lab.traces import Request
from schedulers.plan import Budget, Load, Plan, plan
from schedulers.types import Priority
from serving.bending import bends_after_s
from serving.cli.simulated import model_of
from serving.config.sections import BendingSettings

LOADS = (0.8, 1.2, 2.0, 3.0)
SEEDS = (1, 2)
PRIORITIES, TENANTS = ("low", "normal", "high"), ("greedy", "steady", "modest")
HEADER = (
    "model, load", "side", "bends after, s", "in time/s", "of its peak", "in time", "expired", "refused", "quality",
    "gave way: low, normal, high", "greedy, steady, modest", "levels changed",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Site:
    """A model, and who asks it for what. ``budget_s``: latency that half of the requests ask for; ``patience_s``: after
    which the others are given up. ``room``: requests at a time. ``seconds``: length of a trace."""

    model: str
    replicas: int
    budget_s: float
    patience_s: float
    room: int
    seconds: float


SITES = (
    Site(model="dyn-perceiver-nano", replicas=1, budget_s=0.25, patience_s=30.0, room=512, seconds=2.0),
    Site(model="texthawk2-nano", replicas=1, budget_s=5.0, patience_s=30.0, room=256, seconds=300.0),
    Site(model="dit-moe-nano", replicas=2, budget_s=5.0, patience_s=60.0, room=256, seconds=60.0),
    Site(model="vdit-nano", replicas=2, budget_s=60.0, patience_s=600.0, room=256, seconds=1500.0),
)


def system_of(site: Site) -> System:
    """Quality bends as it does by default at a gateway, or in a queue of jobs, that has this room."""
    family, variant = find(site.model)
    model = model_of(family, variant)
    usual_s = 1.0 / capacity_per_s(model, site.replicas)
    after_s = bends_after_s(BendingSettings(), family.shape, usual_s, gateways=1, room=site.room)
    return System(
        models=(model,), replicas={site.model: site.replicas}, bend_after_s={site.model: after_s}, room=site.room
    )


def capacity_per_s(model: ServedModel, replicas: int) -> float:
    """Usual requests, each at the best point and in full batches."""
    usual = Request(arrived_s=0.0)
    best = plan(model.planned(), model.work(usual), Budget(), Load())
    assert isinstance(best, Plan)
    return replicas / best.busy_s


def arrivals(site: Site, rate_per_s: float, seed: int) -> Iterator[Request]:
    """At random, from three tenants of equal weight, one of which sends 60% of them."""
    random, now_s = Random(seed), 0.0
    while (now_s := now_s + random.expovariate(rate_per_s)) < site.seconds:
        (tenant,) = random.choices(TENANTS, (0.6, 0.3, 0.1))
        (priority,) = random.choices(tuple(Priority), (0.2, 0.6, 0.2))
        yield Request(
            arrived_s=now_s,
            model=site.model,
            tenant=tenant,
            priority=priority,
            latency_s=site.budget_s if random.random() < 0.5 else None,
            patience_s=site.patience_s,
        )


def simulate() -> list[dict[str, Any]]:
    """A row for each model, load and side: means over the seeds."""
    rows = []
    for site in SITES:
        system = system_of(site)
        capacity = capacity_per_s(system.models[0], site.replicas)
        after = {"bends_after_s": system.bend_after_s[site.model]}
        for load in LOADS:
            traces = [list(arrivals(site, load * capacity, seed)) for seed in SEEDS]
            for side, bends in (("fixed", False), ("bending", True)):
                played = [simulate_system(replace(system, bends=bends), trace, OURS) for trace in traces]
                facts = {"load": load, "side": side, "capacity_per_s": capacity, **after}
                rows.append({"model": site.model, **facts, **_figures(site, played)})
    for row in rows:
        mine = [other["good_per_s"] for other in rows if (other["model"], other["side"]) == (row["model"], row["side"])]
        row["of_peak"] = row["good_per_s"] / max(mine)
    return rows


def _figures(site: Site, played: Sequence[Sequence[Outcome]]) -> dict[str, Any]:
    every = [one for outcomes in played for one in outcomes]
    good = [one for one in every if one.is_good]
    by_the_end = sum(one.done_s <= site.seconds for one in good)
    return {
        "good_per_s": by_the_end / site.seconds / len(played),
        "good_share": len(good) / len(every),
        "expired_share": sum(not one.is_good and one.state != "rejected" for one in every) / len(every),
        "refused_share": sum(one.state == "rejected" for one in every) / len(every),
        "mean_quality": fmean(one.quality or 0.0 for one in good),
        "bent_share": {name: gave_way(every, name) for name in (*PRIORITIES, *TENANTS)},
        "level_changes": fmean(level_changes(outcomes) for outcomes in played),
    }


def gave_way(outcomes: Sequence[Outcome], whose: str) -> float:
    """Of the requests of a priority or tenant that were taken in, the share whose quality gave way to load."""
    of = [one for one in outcomes if whose in (one.request.priority.name.lower(), one.request.tenant)]
    taken = [one for one in of if one.state != "rejected"]
    return sum(one.gave_way for one in taken) / max(1, len(taken))


def level_changes(outcomes: Sequence[Outcome]) -> int:
    """Of the pressure of a model, in the order of the trace."""
    return sum(abs(after.level - before.level) for before, after in pairwise(outcomes))


def cells(row: dict[str, Any]) -> list[object]:
    """Of the table."""
    bent = [f"{share:.0%}" for share in row["bent_share"].values()]
    return [
        f"{row['model']}, {row['load']:g}x", row["side"], f"{row['bends_after_s']:.2g}", f"{row['good_per_s']:.3g}",
        f"{row['of_peak']:.0%}", f"{row['good_share']:.1%}", f"{row['expired_share']:.1%}",
        f"{row['refused_share']:.1%}", f"{row['mean_quality']:.3f}", ", ".join(bent[:3]), ", ".join(bent[3:]),
        f"{row['level_changes']:.0f}",
    ]  # fmt: skip
