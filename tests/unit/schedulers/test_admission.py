from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedulers.admission import BucketLimits, BucketState, Cost, Factors, full, refill, reserve, settle, widened

LIMITS = BucketLimits(joules_per_s=10.0, joules_burst=100.0, seconds_per_s=0.5, seconds_burst=2.0)


def test_new_tenant_may_spend_its_burst_and_no_more() -> None:
    state, over = reserve(full(LIMITS, 5.0), LIMITS, Cost(100.0, 2.0), 5.0)
    assert over is None
    assert (state.joules, state.seconds) == (0.0, 0.0)
    _, over = reserve(state, LIMITS, Cost(1.0, 0.0), 5.0)
    assert over is not None


@pytest.mark.parametrize("cost", [Cost(101.0, 0.1), Cost(1.0, 2.1)])
def test_what_exceeds_the_burst_never_fits_and_nothing_is_taken(cost: Cost) -> None:
    state, over = reserve(full(LIMITS, 0.0), LIMITS, cost, 0.0)
    assert over is not None
    assert over.retry_after_s == math.inf
    assert state == full(LIMITS, 0.0)


def test_reserves_in_both_kinds_or_in_none() -> None:
    state = BucketState(50.0, 0.1, 0.0)
    after, over = reserve(state, LIMITS, Cost(10.0, 0.2), 0.0)
    assert after == state
    assert over is not None
    assert over.retry_after_s == pytest.approx(0.2)


def test_retry_is_the_slower_of_both_kinds() -> None:
    _, over = reserve(BucketState(0.0, 0.0, 0.0), LIMITS, Cost(50.0, 0.1), 0.0)
    assert over is not None
    assert over.retry_after_s == pytest.approx(5.0)


def test_settling_less_gives_back_and_settling_more_leaves_a_debt() -> None:
    state, _ = reserve(full(LIMITS, 0.0), LIMITS, Cost(60.0, 1.0), 0.0)
    cheaper = settle(state, LIMITS, Cost(60.0, 1.0), Cost(20.0, 0.5), 0.0)
    assert (cheaper.joules, cheaper.seconds) == (80.0, 1.5)
    debt = settle(state, LIMITS, Cost(60.0, 1.0), Cost(160.0, 1.0), 0.0)
    assert debt.joules == pytest.approx(-60.0)
    assert refill(debt, LIMITS, 6.0).joules == pytest.approx(0.0)


def test_clock_that_runs_backwards_adds_nothing_and_is_not_followed() -> None:
    state = BucketState(10.0, 1.0, 100.0)
    assert refill(state, LIMITS, 50.0) == state
    assert refill(refill(state, LIMITS, 50.0), LIMITS, 101.0).joules == 20.0


def test_zero_rate_never_refills() -> None:
    fixed = BucketLimits(joules_per_s=0.0, joules_burst=1.0, seconds_per_s=0.0, seconds_burst=1.0)
    state, _ = reserve(full(fixed, 0.0), fixed, Cost(1.0, 1.0), 0.0)
    _, over = reserve(state, fixed, Cost(0.5, 0.0), 1e9)
    assert over is not None
    assert over.retry_after_s == math.inf


STEP = st.tuples(st.floats(0.0, 5.0), st.floats(0.0, 120.0), st.floats(0.0, 3.0), st.floats(0.0, 1.5))


@settings(max_examples=200)
@given(steps=st.lists(STEP, max_size=40))
def test_nobody_gets_more_than_burst_plus_rate_times_time(steps: list[tuple[float, float, float, float]]) -> None:
    """Conservation: granted - given back <= burst + rate * elapsed, in both kinds, after every step."""
    state, now_s = full(LIMITS, 0.0), 0.0
    used = [0.0, 0.0]
    for wait_s, joules, seconds, share in steps:
        now_s += wait_s
        cost = Cost(joules, seconds)
        state, over = reserve(state, LIMITS, cost, now_s)
        if over is None:
            used[0] += joules
            used[1] += seconds
            actual = Cost(joules * min(share, 1.0), seconds * min(share, 1.0))
            before = state
            state = settle(state, LIMITS, cost, actual, now_s)
            used[0] -= state.joules - before.joules
            used[1] -= state.seconds - before.seconds
        assert used[0] <= LIMITS.joules_burst + LIMITS.joules_per_s * now_s + 1e-6
        assert used[1] <= LIMITS.seconds_burst + LIMITS.seconds_per_s * now_s + 1e-6
        assert -1e-9 <= state.joules <= LIMITS.joules_burst
        assert -1e-9 <= state.seconds <= LIMITS.seconds_burst


@settings(max_examples=200)
@given(level=st.floats(-50.0, 99.0), joules=st.floats(0.0, 100.0), seconds=st.floats(0.0, 2.0))
def test_retrying_when_told_to_succeeds(level: float, joules: float, seconds: float) -> None:
    state, over = reserve(BucketState(level, 0.0, 0.0), LIMITS, Cost(joules, seconds), 0.0)
    if over is not None:
        assert over.retry_after_s > 0.0
        _, again = reserve(state, LIMITS, Cost(joules, seconds), over.retry_after_s * (1 + 1e-9) + 1e-9)
        assert again is None


@pytest.mark.parametrize("name", ["joules_per_s", "joules_burst", "seconds_per_s", "seconds_burst"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_impossible_limits_are_refused_by_name(name: str, value: float) -> None:
    numbers = {"joules_per_s": 1.0, "joules_burst": 1.0, "seconds_per_s": 1.0, "seconds_burst": 1.0, name: value}
    with pytest.raises(ValueError, match=name):
        BucketLimits(**numbers)


@pytest.mark.parametrize("name", ["max_joules_per_day", "max_joules_per_month"])
@pytest.mark.parametrize("value", [-1.0, 0.0, math.nan])
def test_impossible_caps_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        replace(LIMITS, **{name: value})
    assert replace(LIMITS, **{name: math.inf}).most_j == LIMITS.joules_burst


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_impossible_cost_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="joules"):
        Cost(value, 0.0)
    with pytest.raises(ValueError, match="seconds"):
        Cost(0.0, value)


@pytest.mark.parametrize(
    ("joules", "overrun", "is_alone", "expected"),
    [
        (10.0, 1.0, False, 10.0),
        (10.0, 3.0, False, 30.0),
        (10.0, 30.0, False, 100.0),  # the burst
        (10.0, 30.0, True, 40.0),  # all that is there
        (60.0, 2.0, True, 60.0),  # more than is there
        (120.0, 2.0, False, 120.0),  # more than ever will be
    ],
)
def test_a_request_is_widened_to_the_burst_or_alone_to_what_is_there(
    joules: float, overrun: float, is_alone: bool, expected: float
) -> None:
    state = BucketState(40.0, 2.0, 0.0)
    factors = Factors(joules=overrun, seconds=8.0)
    assert widened(state, LIMITS, Cost(joules, 0.125), factors, is_alone=is_alone) == Cost(expected, 1.0)


def test_a_request_is_widened_to_the_caps_or_alone_to_what_they_leave() -> None:
    state, limits = BucketState(40.0, 2.0, 0.0), replace(LIMITS, max_joules_per_day=30.0, max_joules_per_month=60.0)
    for is_alone, expected in ((False, 30.0), (True, 20.0)):
        cost = widened(state, limits, Cost(10.0, 0.0), Factors(joules=8.0), is_alone=is_alone, room_j=20.0)
        assert cost == Cost(expected, 0.0)
