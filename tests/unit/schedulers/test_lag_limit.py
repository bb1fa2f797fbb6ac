"""Fewer requests while the event loop is late, more again once it is not."""

from __future__ import annotations

import pytest

from schedulers.lag_limit import LATE_S, LEAST, LagLimit


def test_a_loop_that_is_in_time_is_asked_for_all_that_there_is_room_for() -> None:
    limit = LagLimit(512)
    for _ in range(1000):
        limit.observe(LATE_S, 512)
    assert limit.limit == 512


def late(limit: LagLimit, num_in: int, looks: int = 3) -> int:
    for _ in range(looks):
        limit.observe(2 * LATE_S, num_in)
    return limit.limit


def test_a_loop_that_stays_late_is_sent_less_each_time_and_never_nothing() -> None:
    limit = LagLimit(512)
    seen = [late(limit, 512)]
    assert seen == [358]
    seen += [late(limit, 512, looks=1) for _ in range(20)]
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] == LEAST


def test_one_late_look_or_two_say_nothing() -> None:
    limit = LagLimit(512)
    for _ in range(10):
        late(limit, 512, looks=2)
        limit.observe(0.0, 512)
    assert limit.limit == 512


def test_few_requests_are_not_what_makes_it_late() -> None:
    assert late(LagLimit(512), LEAST, looks=10) == 512


def test_less_is_counted_from_what_is_there_and_comes_back_in_steps() -> None:
    limit = LagLimit(512)
    assert late(limit, 100) == 70
    limit.observe(0.0, num_in=70)
    assert limit.limit == 74
    for _ in range(200):
        limit.observe(0.0, num_in=70)
    assert limit.limit == 512


@pytest.mark.parametrize("load_s", [0.5e-3, 1e-3, 2e-3])
def test_a_loop_that_is_late_by_what_is_there_is_hardly_ever_later_than_it_may_be(load_s: float) -> None:
    """A closed loop: all that is asked for comes, and each makes it later by as much."""
    limit = LagLimit(512)
    lags = []
    for tick in range(400):
        lag_s = load_s * limit.limit
        limit.observe(lag_s, limit.limit)
        if tick > 50:
            lags.append(lag_s)
    assert max(lags) < max(1.5 * LATE_S, load_s * (LEAST + 13))
    assert sum(lags) / len(lags) > 0.6 * LATE_S, "it is not idle either"


def test_room_for_fewer_than_the_least_is_kept() -> None:
    limit = LagLimit(4)
    assert late(limit, 4) == 4
    with pytest.raises(ValueError, match="at least 1"):
        LagLimit(0)
