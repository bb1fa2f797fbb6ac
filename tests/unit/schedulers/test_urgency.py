"""The order of jobs: deadlines, classes of priority, and nothing that waits for ever."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedulers.types import Priority
from schedulers.urgency import CLASS_S, HORIZON_S, queue_key

NORMAL = Priority.NORMAL
times = st.floats(0, 1e9)
deadlines = st.one_of(st.none(), st.just(math.inf), st.floats(-1e9, 2e9))
predictions = st.floats(0, 1e6)
priorities = st.sampled_from(Priority)


def test_the_one_that_is_due_first_goes_first() -> None:
    assert queue_key(NORMAL, 0.0, 90.0, 1.0) < queue_key(NORMAL, 0.0, 100.0, 60.0) < queue_key(NORMAL, 0.0, None, 1.0)


def test_equal_jobs_go_by_arrival() -> None:
    assert queue_key(NORMAL, 1.0, None, 5.0) < queue_key(NORMAL, 2.0, None, 5.0)


def test_class_of_priority_is_worth_seconds() -> None:
    low, normal, high = (queue_key(priority, 0.0, None, 5.0) for priority in Priority)
    assert (low - normal, normal - high) == (CLASS_S, CLASS_S)


def test_impossible_deadline_buys_no_more_than_a_hard_one() -> None:
    assert queue_key(NORMAL, 50.0, -1e6, 10.0) == queue_key(NORMAL, 50.0, 60.0, 10.0) == 60.0


@given(priorities, times, deadlines, predictions, priorities, deadlines, predictions)
def test_nothing_is_overtaken_by_what_comes_much_later(
    priority: Priority,
    created_at_s: float,
    deadline_at_s: float | None,
    predicted_s: float,
    other: Priority,
    other_deadline_at_s: float | None,
    other_predicted_s: float,
) -> None:
    later_s = created_at_s + HORIZON_S + 2 * CLASS_S + 1.0
    key = queue_key(priority, created_at_s, deadline_at_s, predicted_s)
    assert key < queue_key(other, later_s, other_deadline_at_s, other_predicted_s)


_NAN, _INF = math.nan, math.inf
_NONSENSE = ((_NAN, None, 1.0), (_INF, None, 1.0), (0.0, _NAN, 1.0), (0.0, None, -1.0), (0.0, None, _INF))


@pytest.mark.parametrize("numbers", _NONSENSE)
def test_numbers_that_cannot_be_ordered_are_refused(numbers: tuple[float, float | None, float]) -> None:
    with pytest.raises(ValueError, match="need finite"):
        queue_key(NORMAL, *numbers)
