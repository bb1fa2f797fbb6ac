"""What work costs: the seconds of a slice, from prices by work unit and batch size, corrected by what slices took.

A model knows slices by their *kind*: a stage of a network, a denoising step of one size, the reading of a prompt, the
turns of a tenant. Each kind has a price and a correction of its own.

    seconds = price of so many rows  *  work, in usual rows  /  rows  *  correction
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

Units: TypeAlias = Mapping[str, float]
"""Amounts of work, by unit."""

#: Weight of the newest slice in the running ratio of actual to predicted time.
_WEIGHT = 0.1
#: A slice this much faster than predicted says that what slowed the others down is over: it counts more.
_RECOVERED, _RECOVERY_WEIGHT = 0.7, 0.5
#: What ``relax`` takes off a correction above 1.
_RELAXATION = 0.25
#: One slow slice (a page fault, a paused process) must not make the scheduler reject everything.
_MIN_CORRECTION, _MAX_CORRECTION = 0.25, 4.0
_MEMO_ROWS = 1024
#: Kinds that nobody named before, of which the longest unseen is forgotten.
_MAX_LEARNT = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What slices of a kind take.

    ``seconds``: by work unit and by rows that run together, what one unit takes of the batch's time. Between numbers of
    rows the batch's time is interpolated, and beyond them its last slope goes on. ``row``: the work of a usual row.
    ``is_guess``: nobody measured it. Slices then replace it as soon as they are observed; a measured price is corrected
    slowly, and by no more than a factor of 4.

    Raises: ValueError: no unit, no number of rows, or a number that is out of range.
    """

    seconds: Mapping[str, Mapping[int, float]]
    row: Units
    is_guess: bool = False

    def __post_init__(self) -> None:
        if not self.seconds:
            raise ValueError("a price names no unit of work; need at least one")
        for unit, by_rows in self.seconds.items():
            sizes = list(by_rows)
            if not sizes or sizes[0] < 1 or any(a >= b for a, b in pairwise(sizes)):
                raise ValueError(f"{unit} is priced for {sizes} rows; need ascending whole numbers from 1")
            for number in (*by_rows.values(), self.row.get(unit, 0.0)):
                if not 0.0 <= number < math.inf:
                    raise ValueError(f"the price of {unit} has {number}; need finite numbers >= 0")
        if not self.of_rows(1) > 0.0:
            raise ValueError(f"a row of {dict(self.row)} costs nothing; need a price > 0")

    def of_rows(self, rows: int) -> float:
        """Seconds of a batch of usual rows. Raises: ValueError: there is no row."""
        if rows < 1:
            raise ValueError(f"a batch has {rows} rows; need at least 1")
        return sum(self.row.get(unit, 0.0) * _batch_s(by_rows, rows) for unit, by_rows in self.seconds.items())

    def in_rows(self, units: Units) -> float:
        """As many usual rows cost as much as this work, each alone."""
        return sum(units.get(unit, 0.0) * _batch_s(by_rows, 1) for unit, by_rows in self.seconds.items()) / (
            self.of_rows(1)
        )


def _batch_s(by_rows: Mapping[int, float], rows: int) -> float:
    """Seconds of a batch in which each row has one unit."""
    sizes = list(by_rows)
    times = [size * by_rows[size] for size in sizes]
    if len(sizes) == 1:
        return times[0] * max(1.0, rows / sizes[0])
    at = min(max(bisect_right(sizes, rows), 1), len(sizes) - 1)
    slope_s = (times[at] - times[at - 1]) / (sizes[at] - sizes[at - 1])
    if rows > sizes[-1]:
        # Noise at the table's end must not make larger batches ever cheaper.
        return times[-1] + max(slope_s, 0.0) * (rows - sizes[-1])
    value_s = times[at - 1] + slope_s * (rows - sizes[at - 1])
    if rows < sizes[0]:
        # The line may cross zero: stay between the batch's share of the smallest measured one and all of it.
        return min(max(value_s, times[0] * rows / sizes[0]), times[0])
    return value_s


PREDICTED = Price(seconds={"seconds": {1: 1.0}}, row={"seconds": 1.0}, is_guess=True)
"""Of work whose seconds were predicted elsewhere, for a row alone: a usual row takes one second."""


_ROW: Units = {"rows": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Predicted against actual time of the slices of a kind; ``correction`` multiplies its price now."""

    kind: Hashable
    num_slices: int
    predicted_s: float
    actual_s: float
    correction: float


class _Rate:
    """A price, and what is learnt about it. ``by_rows``: seconds up to the largest batch asked for so far."""

    __slots__ = ("actual_s", "by_rows", "correction", "num_slices", "predicted_s", "price", "seen_s")

    def __init__(self, price: Price) -> None:
        self.price = price
        self.by_rows = [0.0]
        self.correction = 1.0
        #: Recent uncorrected seconds: how much a guess has been replaced.
        self.seen_s = 0.0
        self.num_slices = 0
        self.predicted_s = self.actual_s = 0.0

    def batch_s(self, rows: int) -> float:
        memo = self.by_rows
        if not 0 < rows < _MEMO_ROWS:
            return self.price.of_rows(rows)
        if rows >= len(memo):
            memo.extend(self.price.of_rows(n) for n in range(len(memo), rows + 1))
        return memo[rows]


class CostModel:
    """Predicted seconds of engine time; times ``watts`` they are joules.

    ``prices``: of the kinds that are known. A kind that is not has the price ``other``, and is remembered once it was
    observed.
    """

    def __init__(
        self, prices: Mapping[Hashable, Price] | None = None, *, other: Price = PREDICTED, watts: float = 1.0
    ) -> None:
        if not 0.0 < watts < math.inf:
            raise ValueError(f"watts is {watts}; need a finite number > 0")
        self.watts = watts
        self._rates = {kind: _Rate(price) for kind, price in (prices or {}).items()}
        self._num_priced = len(self._rates)
        self._other = _Rate(other)
        self._learnt: dict[Hashable, _Rate] = {}

    @property
    def num_priced(self) -> int:
        """Kinds that have a price of their own: stages, of a network."""
        return self._num_priced

    def batch_s(self, kind: Hashable, rows: int, work: float | None = None) -> float:
        """Corrected prediction in seconds. ``work``: of all rows, in usual rows; as many as there are by default.

        Raises: ValueError: there is no row.
        """
        rate = self._rates.get(kind) or self._learnt.get(kind, self._other)
        memo = rate.by_rows
        seconds = memo[rows] if 0 < rows < len(memo) else rate.batch_s(rows)  # a decision asks a dozen times
        return seconds * rate.correction if work is None else seconds * rate.correction * work / rows

    def in_rows(self, kind: Hashable, units: Units) -> float:
        """Work in named units as usual rows of a kind."""
        return self._rate(kind).price.in_rows(units)

    def knows(self, kind: Hashable) -> bool:
        """Whether slices of this kind were measured or observed."""
        return kind in self._rates or kind in self._learnt

    def correction(self, kind: Hashable) -> float:
        """Running ratio of actual time to that of the price."""
        return self._rate(kind).correction

    def observe(self, kind: Hashable, rows: int, elapsed_s: float, work: float | None = None) -> None:
        """Move the correction of a kind towards ``elapsed_s`` / price. Work of no cost teaches nothing,
        and no time nothing about a guess.

        Raises: ValueError: ``elapsed_s`` is negative or not finite.
        """
        if not 0.0 <= elapsed_s < math.inf:
            raise ValueError(f"elapsed_s is {elapsed_s}; need a finite number >= 0")
        price = self._rate(kind)
        price_s = price.batch_s(rows) if work is None else price.batch_s(rows) * work / rows
        if price_s <= 0.0 or (elapsed_s <= 0.0 and price.price.is_guess):
            return
        rate = self._rates.get(kind) or self._remembered(kind)
        rate.num_slices += 1
        rate.predicted_s += price_s * rate.correction
        rate.actual_s += elapsed_s
        ratio = elapsed_s / price_s
        if rate.price.is_guess:  # large slices say more than small ones
            rate.seen_s = (1.0 - _WEIGHT) * rate.seen_s + price_s
            weight = price_s / rate.seen_s
        else:
            ratio = min(_MAX_CORRECTION, max(_MIN_CORRECTION, ratio))
            weight = _RECOVERY_WEIGHT if ratio < _RECOVERED * rate.correction else _WEIGHT
        rate.correction += weight * (ratio - rate.correction)

    def relax(self, kind: Hashable) -> None:
        """Expect a kind to be less slow than it was: work was given up, and nothing has run that could say so."""
        rate = self._rate(kind)
        rate.correction -= _RELAXATION * max(0.0, rate.correction - 1.0)

    def accuracy(self) -> tuple[Accuracy, ...]:
        """Predicted against actual, by kind; what slices were predicted to take *before* they ran."""
        return tuple(
            Accuracy(
                kind=kind,
                num_slices=rate.num_slices,
                predicted_s=rate.predicted_s,
                actual_s=rate.actual_s,
                correction=rate.correction,
            )
            for kind, rate in (self._rates | self._learnt).items()
        )

    def _rate(self, kind: Hashable) -> _Rate:
        return self._rates.get(kind) or self._learnt.get(kind, self._other)

    def _remembered(self, kind: Hashable) -> _Rate:
        known = self._learnt.pop(kind, None)
        rate = self._learnt[kind] = known or _Rate(self._other.price)
        if len(self._learnt) > _MAX_LEARNT:
            del self._learnt[next(iter(self._learnt))]
        return rate


def measured_stages(
    batch_sizes: Sequence[int],
    stage_seconds: Sequence[Sequence[float]],
    *,
    row: Units = _ROW,
    watts: float = 1.0,
) -> CostModel:
    """Stages of a network, as measured with rows that have the work ``row``: it is priced by its first unit.
    ``stage_seconds[stage][batch size]``: of each stage alone.

    Raises: ValueError: the table is empty, ragged, unsorted, or has a value that is not finite and positive.
    """
    if not stage_seconds:
        raise ValueError("stage_seconds is empty; need one row per stage")
    prices: dict[Hashable, Price] = {}
    for stage, times in enumerate(stage_seconds):
        if len(times) != len(batch_sizes):
            raise ValueError(f"stage_seconds[{stage}] has {len(times)} values for {len(batch_sizes)} batch sizes")
        if not all(time_s > 0.0 for time_s in times):
            raise ValueError(f"stage_seconds[{stage}] is {list(times)}; need numbers > 0")
        unit, amount = next(iter(row.items()))
        shares = {size: time_s / (max(1, size) * amount) for size, time_s in zip(batch_sizes, times, strict=True)}
        prices[stage] = Price(seconds={unit: shares}, row=row)
    return CostModel(prices, watts=watts)
