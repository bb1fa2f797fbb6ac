from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedulers.admission import BucketLimits
from schedulers.spending import (
    DAY_S,
    Spending,
    SpentOut,
    next_day_s,
    next_month_s,
    room_j,
    spent,
    spent_out,
    turned,
)

LIMITS = BucketLimits(
    joules_per_s=1.0,
    joules_burst=1e6,
    seconds_per_s=1.0,
    seconds_burst=1e6,
    max_joules_per_day=100.0,
    max_joules_per_month=250.0,
)


def at(*fields: int) -> float:
    return datetime(*fields, tzinfo=UTC).timestamp()  # type: ignore[arg-type,misc]


NOON = at(2026, 3, 30, 12)
SPENT = Spending(at_s=NOON, day_j=70.0, month_j=200.0, open_j=10.0)


def test_a_day_and_a_month_begin_with_what_is_open() -> None:
    assert turned(SPENT, at(2026, 3, 30, 23, 59, 59)) == replace(SPENT, at_s=at(2026, 3, 30, 23, 59, 59))
    assert turned(SPENT, at(2026, 3, 31)) == replace(SPENT, at_s=at(2026, 3, 31), day_j=10.0)
    assert turned(SPENT, at(2026, 4, 1)) == replace(SPENT, at_s=at(2026, 4, 1), day_j=10.0, month_j=10.0)
    assert turned(SPENT, at(2027, 3, 30, 12)).month_j == 10.0, "the same month of another year"


def test_a_clock_that_goes_back_gives_nothing_back() -> None:
    assert turned(SPENT, at(2026, 2, 1)) == SPENT


@pytest.mark.parametrize(
    ("now", "day", "month"),
    [
        ((2026, 3, 30, 12), (2026, 3, 31), (2026, 4, 1)),
        ((2026, 12, 31, 23, 59, 59), (2027, 1, 1), (2027, 1, 1)),
        ((2028, 2, 28), (2028, 2, 29), (2028, 3, 1)),
        ((2100, 2, 28), (2100, 3, 1), (2100, 3, 1)),
        ((2026, 1, 1), (2026, 1, 2), (2026, 2, 1)),
    ],
)
def test_days_and_months_are_those_of_the_calendar(
    now: tuple[int, ...], day: tuple[int, ...], month: tuple[int, ...]
) -> None:
    assert next_day_s(at(*now)) == at(*day)
    assert next_month_s(at(*now)) == at(*month)


@given(st.floats(0.0, 1e10))
def test_what_comes_next_is_ahead_and_begins_a_day_of_utc(now_s: float) -> None:
    day_s, month_s = next_day_s(now_s), next_month_s(now_s)
    assert now_s < day_s <= now_s + DAY_S
    assert day_s <= month_s <= now_s + 31 * DAY_S
    assert (day_s % DAY_S, datetime.fromtimestamp(month_s, UTC).day) == (0.0, 1)


def test_what_is_open_leaves_less_room_and_is_not_spent() -> None:
    assert room_j(SPENT, LIMITS) == 30.0
    assert room_j(replace(SPENT, month_j=245.0), LIMITS) == 5.0
    assert spent_out(SPENT, LIMITS, 40.0) is None, "60 J of the day are spent, and 10 may come back"
    assert spent_out(SPENT, LIMITS, 40.1) == SpentOut("day", 12 * 3600.0)
    assert spent_out(SPENT, LIMITS, 0.0) is None


def test_of_two_caps_the_one_that_lasts_longer_is_told() -> None:
    month = SpentOut("month", 36 * 3600.0)
    assert spent_out(replace(SPENT, month_j=259.0), LIMITS, 2.0) == month
    assert spent_out(replace(SPENT, day_j=110.0, month_j=260.0), LIMITS, 0.0) == month
    assert spent_out(replace(SPENT, day_j=110.0), LIMITS, 0.0) == SpentOut("day", 12 * 3600.0)


def test_giving_back_goes_down_to_nothing() -> None:
    after = spent(SPENT, -100.0)
    assert (after.day_j, after.month_j, after.open_j) == (0.0, 100.0, 10.0)
    assert spent(SPENT, 5.0).day_j == 75.0


def test_months_are_those_of_the_calendar() -> None:
    first = date(1970, 1, 1)
    for number in range(0, 200 * 365, 7):
        day = first + timedelta(days=number)
        year, month = divmod(12 * day.year + day.month, 12)
        begins = date(year, month + 1, 1)
        assert next_month_s(number * DAY_S + 5.0) == (begins - first).days * DAY_S, day
