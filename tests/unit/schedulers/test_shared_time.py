"""Busy time is divided without loss."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedulers.shared_time import SharedTime


def test_one_alone_pays_everything() -> None:
    time = SharedTime()
    start = time.enter(10.0)
    assert time.leave(12.5) - start == 2.5


def test_two_share_while_they_overlap() -> None:
    time = SharedTime()
    first = time.enter(0.0)
    second = time.enter(1.0)
    first_s = time.leave(3.0) - first
    second_s = time.leave(4.0) - second
    assert (first_s, second_s) == (2.0, 2.0)
    assert time.busy_s(9.0) == 4.0


@given(st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=60))
def test_charges_add_up_to_the_busy_time(events: list[tuple[float, bool]]) -> None:
    time = SharedTime()
    now_s, charged_s = 0.0, 0.0
    starts: list[float] = []
    for gap_s, is_arrival in [*events, *[(1.0, False)] * len(events)]:
        now_s += gap_s
        if is_arrival:
            starts.append(time.enter(now_s))
        elif starts:
            start = starts.pop(0)
            charged_s += time.leave(now_s) - start
    assert time.num_running == len(starts) == 0
    assert charged_s == pytest.approx(time.busy_s(now_s), abs=1e-6)


def test_a_clock_that_runs_backwards_charges_nothing() -> None:
    time = SharedTime()
    start = time.enter(5.0)
    assert time.read(4.0) == start
    assert time.leave(5.5) - start == 0.5


def test_leaving_without_having_entered_is_an_error() -> None:
    with pytest.raises(ValueError, match="no request is running"):
        SharedTime().leave(1.0)
