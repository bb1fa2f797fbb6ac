"""The retry budget: a share of the requests of late, and always what one replica has in flight."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedulers.retry_budget import RetryBudget


def test_one_replica_may_always_be_lost() -> None:
    budget = RetryBudget(floor=3)
    assert [budget.spend(0.0) for _ in range(4)] == [True, True, True, False]


def test_a_tenth_of_the_requests_once_that_is_more() -> None:
    budget = RetryBudget(floor=3)
    for _ in range(55):
        budget.add_request(0.0)
    assert budget.left(0.0) == 5
    assert budget.spend(0.0, 5)
    assert not budget.spend(0.0)


def test_too_many_at_once_take_nothing() -> None:
    budget = RetryBudget(floor=3)
    assert not budget.spend(0.0, 4)
    assert budget.spend(0.0, 3)


def test_what_was_spent_comes_back_with_the_window() -> None:
    budget = RetryBudget(floor=2, window_s=10.0)
    assert budget.spend(0.5, 2)
    assert not budget.spend(9.9)
    assert budget.spend(11.0, 2)


@pytest.mark.parametrize("wrong", [{"floor": 0}, {"floor": 1, "share": 1.5}, {"floor": 1, "window_s": 0.0}])
def test_impossible_budgets_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="impossible"):
        RetryBudget(**wrong)  # type: ignore[arg-type]


@given(
    st.lists(st.tuples(st.floats(0.0, 2.0), st.booleans(), st.integers(1, 4)), max_size=60),
    st.integers(1, 5),
    st.sampled_from([0.0, 0.1, 0.5]),
)
def test_no_window_holds_more_than_it_may(steps: list[tuple[float, bool, int]], floor: int, share: float) -> None:
    """Against a plain count over everything that ever happened, in the window as the budget cuts it."""
    budget, now_s = RetryBudget(floor, share, window_s=4.0), 0.0
    requests: list[float] = []
    retries: list[float] = []
    for pause_s, is_request, count in steps:
        now_s += pause_s
        slot = math.floor(now_s / 4.0 * 10)

        def in_window(times: list[float], slot: int = slot) -> int:
            return sum(math.floor(time_s / 4.0 * 10) > slot - 10 for time_s in times)

        if is_request:
            requests.append(now_s)
            budget.add_request(now_s)
            continue
        allowed = max(floor, math.floor(share * in_window(requests))) - in_window(retries)
        assert budget.spend(now_s, count) == (count <= allowed)
        retries += [now_s] * count if count <= allowed else []
