"""Pools with more to do than they can, in virtual time."""

from __future__ import annotations

import pytest

from schedulers.bending import Limits
from schedulers.lab.overload import UNIT, Outcome, Pool, arrivals, replay
from schedulers.plan import Cost, Point

SECONDS = 400.0


def point(name: str, seconds: float, quality: float) -> Point:
    cost = Cost(latency_s={UNIT: seconds}, busy_s={UNIT: seconds}, watts=10.0)
    return Point(name=name, settings={"name": name}, cost=cost, quality=quality)


POOL = Pool(
    name="rows",
    points=(point("full", 0.2, 0.98), point("good", 0.1, 0.95), point("fair", 0.05, 0.90)),
    replicas=2,
    budget_s=2.0,
    patience_s=10.0,
    max_waiting=128,
    limits=Limits(rise_s=0.5, fall_s=0.25, rise_every_s=0.5, fall_after_s=5.0),
)


def outcomes(load: float, seed: int = 0) -> tuple[Outcome, Outcome]:
    """Without bending, and with it."""
    trace = list(arrivals(POOL, load, SECONDS, seed))
    return replay(POOL, trace, bends=False), replay(POOL, trace, bends=True)


@pytest.mark.parametrize("load", [0.5, 1.5, 3.0, 6.0])
def test_every_request_has_one_end(load: float) -> None:
    for one in outcomes(load):
        assert one.sent == one.good + one.expired + one.refused > 0


def test_without_overload_nothing_bends() -> None:
    rigid, bending = outcomes(0.4)
    assert bending.refused == bending.expired == rigid.refused == 0
    assert sum(bending.bent.values()) < 0.02 * sum(bending.planned.values())


@pytest.mark.parametrize("seed", range(2))
def test_quality_gives_way_before_anything_is_refused(seed: int) -> None:
    rigid, bending = outcomes(2.0, seed)
    assert rigid.refused + rigid.expired > 0.1 * rigid.sent
    assert bending.refused + bending.expired < 0.01 * bending.sent
    assert bending.num_changes < SECONDS / 10.0


def test_goodput_at_three_times_the_capacity_is_that_of_its_peak() -> None:
    goodput = {load: outcomes(load) for load in (0.8, 1.5, 3.0)}
    assert goodput[3.0][1].good >= 0.9 * max(bending.good for _, bending in goodput.values())
    assert all(bending.good >= rigid.good for rigid, bending in goodput.values())


@pytest.mark.parametrize("load", [1.5, 3.0])
def test_low_priority_and_the_greedy_give_way_most(load: float) -> None:
    _, bending = outcomes(load)
    assert bending.bent_share("low") >= bending.bent_share("normal") >= bending.bent_share("high")
    assert bending.bent_share("greedy") > bending.bent_share("steady") > bending.bent_share("modest")
