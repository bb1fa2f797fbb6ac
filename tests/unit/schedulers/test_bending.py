"""Quality under load: levels that seldom change, who gives way first, and what a depth means for a point."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedulers.bending import LEVELS, Limits, Pressure, Shares, depth
from schedulers.plan import Budget, Cost, Load, Plan, Point, plan
from schedulers.types import Priority

LIMITS = Limits(rise_s=0.5, fall_s=0.25, rise_every_s=0.5, fall_after_s=5.0)
depths = st.floats(0.0, 1.0)


# -- levels ----------------------------------------------------------------------------------------------------------


def test_level_rises_one_by_one_while_more_than_the_limit_waits() -> None:
    pressure = Pressure(LIMITS)
    assert [pressure.observe(t, 0.6) for t in (0.0, 0.1, 0.4, 0.5, 1.0, 1.4, 1.5, 9.0)] == [1, 1, 1, 2, 3, 3, 4, 4]


def test_between_the_limits_nothing_changes() -> None:
    pressure = Pressure(LIMITS)
    assert [pressure.observe(t, 0.4) for t in range(100)] == [0] * 100
    pressure.observe(100.0, 0.6)
    assert [pressure.observe(100.0 + t, 0.4) for t in range(1, 100)] == [1] * 99
    assert pressure.num_changes == 1


def test_level_falls_after_it_was_calm_for_long_enough() -> None:
    pressure = Pressure(LIMITS)
    for t in (0.0, 0.5):
        pressure.observe(t, 1.0)
    assert [pressure.observe(1.0 + t, 0.2) for t in (0.0, 4.9, 5.0, 9.9, 10.0)] == [2, 2, 1, 1, 0]


def test_calm_that_is_broken_off_counts_anew() -> None:
    pressure = Pressure(LIMITS)
    pressure.observe(0.0, 1.0)
    for t, queued_s in ((1.0, 0.1), (5.0, 0.3), (5.5, 0.1)):
        assert pressure.observe(t, queued_s) == 1
    assert [pressure.observe(t, 0.1) for t in (10.0, 10.1)] == [1, 0], "calm since 5.05"


def test_a_level_that_had_to_come_back_is_kept_longer_before_the_next_try() -> None:
    pressure = Pressure(LIMITS)
    pressure.observe(0.0, 1.0)
    pressure.observe(1.0, 0.0)
    assert pressure.observe(6.0, 0.0) == 0
    assert pressure.observe(7.0, 1.0) == 1, "it was too early"
    pressure.observe(8.0, 0.0)
    assert [pressure.observe(t, 0.0) for t in (13.0, 27.7, 27.8)] == [1, 1, 0]


def test_quiet_in_which_nobody_came_counts_as_calm() -> None:
    pressure = Pressure(LIMITS)
    for t in (0.0, 0.5, 1.0, 1.5):
        pressure.observe(t, 2.0)
    assert pressure.level == LEVELS
    assert pressure.expected_s(2.5) == pytest.approx(1.0)
    assert pressure.observe(100.0, 0.0) == 0


@given(st.lists(st.tuples(st.floats(0.0, 20.0), st.floats(0.0, 10.0)), max_size=60))
def test_level_stays_in_its_range_and_never_changes_faster_than_its_limits(seen: list[tuple[float, float]]) -> None:
    pressure, now_s = Pressure(LIMITS), 0.0
    for gap_s, queued_s in seen:
        now_s += gap_s
        before = pressure.level
        level = pressure.observe(now_s, queued_s)
        assert 0 <= level <= LEVELS
        assert level - before <= 1
        assert level >= before - math.floor(gap_s / LIMITS.fall_after_s) - 1
        assert level >= before or queued_s <= LIMITS.fall_s


# -- who gives way ---------------------------------------------------------------------------------------------------


@given(st.integers(0, LEVELS - 1), st.sampled_from(Priority), st.floats(0.0, 10.0))
def test_depth_grows_with_pressure_and_is_none_without(level: int, priority: Priority, share: float) -> None:
    assert depth(0, priority, share) == 0.0
    assert depth(level, priority, share) <= depth(level + 1, priority, share) <= 1.0


@given(st.integers(0, LEVELS), st.floats(0.0, 10.0), st.floats(0.0, 10.0), st.sampled_from(Priority))
def test_low_priority_and_tenants_over_their_share_give_way_first(
    level: int, share: float, more: float, priority: Priority
) -> None:
    low, normal, high = (depth(level, one, share) for one in (Priority.LOW, Priority.NORMAL, Priority.HIGH))
    assert low >= normal >= high
    assert depth(level, priority, share + more) >= depth(level, priority, share)


def test_order_in_which_they_give_way() -> None:
    first = {
        (priority.name, share): next((n for n in range(LEVELS + 1) if depth(n, priority, share)), None)
        for priority in Priority
        for share in (0.5, 1.0, 3.0)
    }
    assert first == {
        ("LOW", 0.5): 1, ("LOW", 1.0): 1, ("LOW", 3.0): 1,
        ("NORMAL", 0.5): 2, ("NORMAL", 1.0): 1, ("NORMAL", 3.0): 1,
        ("HIGH", 0.5): 4, ("HIGH", 1.0): 3, ("HIGH", 3.0): 1,
    }  # fmt: skip
    assert [depth(1, Priority.LOW), depth(1, Priority.NORMAL), depth(1, Priority.NORMAL, 3.0)] == [0.5, 0.25, 0.75]


def test_share_is_what_a_tenant_had_over_what_its_weight_gives_it() -> None:
    shares = Shares({"big": 3.0}, fades_s=10.0)
    assert shares.of("anyone") == 1.0
    shares.add(0.0, "big", 6.0)
    assert shares.of("big") == pytest.approx(1.0)
    shares.add(0.0, "small", 6.0)
    assert (shares.of("big"), shares.of("small"), shares.of("new")) == pytest.approx((2 / 3, 2.0, 0.0))


def test_what_was_had_fades() -> None:
    shares = Shares(fades_s=10.0)
    shares.add(0.0, "early", 8.0)
    shares.add(10.0 * math.log(8.0), "late", 1.0)
    assert shares.of("early") == pytest.approx(1.0)
    assert shares.of("late") == pytest.approx(1.0)


def test_many_tenants_are_forgotten_and_the_sums_stay_right() -> None:
    shares, random = Shares(fades_s=1.0), Random(1)
    for number in range(20_000):
        shares.add(number / 50.0, f"t{random.randrange(6000)}", random.random())
    assert len(shares._used) <= 4098
    assert sum(shares._used.values()) == pytest.approx(shares._total)


# -- points ----------------------------------------------------------------------------------------------------------


def point(name: str, seconds: float, quality: float | None) -> Point:
    cost = Cost(latency_s={"rows": seconds}, busy_s={"rows": seconds}, watts=10.0)
    return Point(name=name, settings={"name": name}, cost=cost, quality=quality)


FRONT = (point("full", 8.0, 0.98), point("good", 4.0, 0.95), point("fair", 2.0, 0.90), point("poor", 1.0, 0.70))
points = st.lists(
    st.builds(
        point,
        st.uuids().map(str),
        st.floats(0.01, 100.0),
        st.none() | st.floats(0.01, 1.0),
    ),
    min_size=1,
    max_size=6,
)
budgets = st.builds(
    Budget,
    latency_s=st.none() | st.floats(0.01, 100.0),
    energy_j=st.none() | st.floats(0.1, 1000.0),
    quality_floor=st.none() | st.floats(0.0, 1.0),
)


def made(bend: float, front: tuple[Point, ...] = FRONT, **budget: float) -> Plan:
    chosen = plan(front, lambda _: {"rows": 1.0}, Budget(**budget), Load(bend=bend))
    assert isinstance(chosen, Plan)
    return chosen


def test_a_depth_is_a_place_on_the_way_from_the_dearest_to_the_cheapest() -> None:
    assert [made(d).point.name for d in (0.0, 0.1, 0.25, 0.4, 0.75, 1.0)] == [
        "full", "full", "good", "good", "fair", "poor"
    ]  # fmt: skip
    assert (made(0.0).degraded, made(0.0).best) == ((), None)
    bent = made(0.75)
    assert bent.best is not None
    assert (bent.degraded, bent.best.point.name) == (("load",), "full")


def test_two_points_change_over_in_the_middle() -> None:
    front = (FRONT[0], FRONT[3])
    assert [made(d, front).point.name for d in (0.25, 0.5)] == ["full", "poor"]


def test_load_goes_no_lower_than_the_floor() -> None:
    assert made(1.0, quality_floor=0.9).point.name == "fair"
    assert made(1.0, quality_floor=0.98).point.name == "full"
    assert made(1.0, quality_floor=0.98).degraded == ()


def test_who_asks_for_little_is_not_bent_further_before_others_have_come_so_low() -> None:
    frugal = made(0.25, energy_j=25.0)
    assert (frugal.point.name, frugal.degraded) == ("fair", ("energy",))
    assert made(1.0, energy_j=25.0).degraded == ("energy", "load")


def test_points_that_nobody_measured_do_not_bend() -> None:
    guesses = (point("a", 2.0, None), point("b", 1.0, None))
    assert made(1.0, guesses).point.name == "a"


@given(points, budgets, depths, depths)
def test_more_pressure_never_costs_more_nor_refuses_anybody(
    front: list[Point], budget: Budget, one: float, other: float
) -> None:
    plans = [
        plan(front, lambda _: {"rows": 1.0}, budget, Load(bend=bend))
        for bend in (0.0, min(one, other), max(one, other))
    ]
    if not isinstance(plans[0], Plan):
        assert plans[1:] == [plans[0]] * 2
        return
    chosen = [each for each in plans if isinstance(each, Plan)]
    assert len(chosen) == 3
    for lower, higher in pairwise(chosen):
        assert higher.quality <= lower.quality
        assert higher.busy_s <= lower.busy_s or lower.quality == higher.quality
    for each in chosen:
        assert budget.quality_floor is None or each.quality >= budget.quality_floor
        assert budget.energy_j is None or each.energy_j <= budget.energy_j
        assert budget.latency_s is None or each.latency_s <= budget.latency_s


# -- a step of load, in virtual time -----------------------------------------------------------------------------------


def arrivals(rates: tuple[tuple[float, float], ...], seed: int) -> Iterator[float]:
    """Times of a Poisson process whose rate is (per second, for so many seconds), one after the other."""
    random, start_s = Random(seed), 0.0
    for rate, seconds in rates:
        t = start_s + random.expovariate(rate)
        while t < start_s + seconds:
            yield t
            t += random.expovariate(rate)
        start_s += seconds


class Served:
    """One replica that answers in order; what would take more than 4 s is refused."""

    PATIENCE_S = 4.0

    def __init__(self, *, bends: bool) -> None:
        self.pressure = Pressure(LIMITS)
        self.bends = bends
        self.free_s = 0.0
        self.good = self.refused = 0
        self.levels: list[tuple[float, int]] = []

    def arrive(self, now_s: float) -> None:
        queued_s = max(0.0, self.free_s - now_s)
        level = self.pressure.observe(now_s, queued_s) if self.bends else 0
        self.levels.append((now_s, level))
        front = [point(p.name, p.cost.busy_s["rows"] / 80.0, p.quality) for p in FRONT]
        load = Load(queued_s=queued_s, bend=depth(level, Priority.NORMAL))
        chosen = plan(front, lambda _: {"rows": 1.0}, Budget(latency_s=self.PATIENCE_S), load)
        if not isinstance(chosen, Plan):
            self.refused += 1
            return
        self.free_s = now_s + queued_s + chosen.busy_s
        self.good += 1


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("peak", [15.0, 22.0, 30.0, 60.0])
def test_a_step_of_load_bends_quality_without_swinging_and_it_comes_back(peak: float, seed: int) -> None:
    """The best point does 10 a second, the cheapest 80: 0.2x, then 1.5 to 6 times what the best can do, then 0.2x."""
    rates = ((2.0, 60.0), (peak, 600.0), (2.0, 300.0))
    bending, rigid = Served(bends=True), Served(bends=False)
    for t in arrivals(rates, seed):
        bending.arrive(t)
        rigid.arrive(t)
    before, during, after = (
        [level for t, level in bending.levels if start <= t < end]
        for start, end in ((0.0, 60.0), (120.0, 660.0), (900.0, 960.0))
    )
    assert set(before) == {0}
    assert max(during) >= 1
    assert set(after) == {0}
    tries = 600.0 / (LIMITS.fall_after_s * 16.0) + 4  # once it has backed off, and while it does
    assert bending.pressure.num_changes <= 2 * (LEVELS + tries)
    assert bending.refused == 0
    assert bending.good >= rigid.good
