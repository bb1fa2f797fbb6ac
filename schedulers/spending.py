"""The joules that a tenant has spent in this day and this month of UTC, beside the most that it may: pure functions on
plain state, as ``schedulers.admission``.

    turn     when a day (a month) begins, spent <- open: what runs then belongs to the new one
    reserve  granted if joules <= room, the least of what both caps leave, then spent <- spent + joules
    settle   spent <- max(0, spent - reserved + actual)

What is given back, as for a job of the day before, counts for the day in which it is given back.

The shared store runs the same arithmetic in its scripts; this is the twin that they are tested against.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from schedulers.admission import BucketLimits

DAY_S: Final = 86400.0
Period: TypeAlias = Literal["day", "month"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """Joules of the day and the month that ``at_s`` (Unix time) is in, with what is set aside for requests that run:
    ``open_j``."""

    at_s: float
    day_j: float
    month_j: float
    open_j: float


@dataclass(frozen=True, slots=True)
class SpentOut:
    """The cap of this period is reached. ``retry_after_s``: until the next one begins."""

    period: Period
    retry_after_s: float


def turned(spending: Spending, now_s: float) -> Spending:
    """Let time pass. A clock that runs backwards is not followed."""
    before, now = int(spending.at_s // DAY_S), int(now_s // DAY_S)
    if now <= before:
        return replace(spending, at_s=max(spending.at_s, now_s))
    is_same_month = _month_of(now) == _month_of(before)
    return Spending(
        at_s=now_s,
        day_j=spending.open_j,
        month_j=spending.month_j if is_same_month else spending.open_j,
        open_j=spending.open_j,
    )


def spent(spending: Spending, joules: float) -> Spending:
    """Spend so many in this period, or below 0 give them back."""
    return replace(spending, day_j=max(0.0, spending.day_j + joules), month_j=max(0.0, spending.month_j + joules))


def room_j(spending: Spending, limits: BucketLimits) -> float:
    """Joules that may be reserved now."""
    return min(limits.max_joules_per_day - spending.day_j, limits.max_joules_per_month - spending.month_j)


def spent_out(spending: Spending, limits: BucketLimits, joules: float) -> SpentOut | None:
    """Whether a cap is reached for a request of so many joules, also if what runs took nothing; of two caps the one
    that lasts longer. 0: whether anything is left."""
    month_j, day_j = spending.month_j - spending.open_j, spending.day_j - spending.open_j
    if _is_over(joules, limits.max_joules_per_month - month_j):
        return SpentOut("month", next_month_s(spending.at_s) - spending.at_s)
    if _is_over(joules, limits.max_joules_per_day - day_j):
        return SpentOut("day", next_day_s(spending.at_s) - spending.at_s)
    return None


def next_day_s(now_s: float) -> float:
    """When the next day begins."""
    return (now_s // DAY_S + 1.0) * DAY_S


def next_month_s(now_s: float) -> float:
    """When the next month begins."""
    return _first_day(_month_of(int(now_s // DAY_S)) + 1) * DAY_S


def _is_over(joules: float, left_j: float) -> bool:
    return joules > left_j or left_j <= 0.0


def _month_of(day: int) -> int:
    """Months from March of year 0 to a day since 1970 (H. Hinnant, "chrono-Compatible Low-Level Date Algorithms": years
    begin in March, so that a leap day is the last of its year)."""
    era, day_of_era = divmod(day + 719_468, 146_097)
    year = (day_of_era - day_of_era // 1_460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year + year // 4 - year // 100)
    return 12 * (400 * era + year) + (5 * day_of_year + 2) // 153


def _first_day(month: int) -> int:
    """The day since 1970 on which a month of ``_month_of`` begins."""
    years, month_of_year = divmod(month, 12)
    era, year = divmod(years, 400)
    return 146_097 * era + 365 * year + year // 4 - year // 100 + (153 * month_of_year + 2) // 5 - 719_468
