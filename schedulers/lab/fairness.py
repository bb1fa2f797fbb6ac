"""How far apart two tenants get while both have something waiting, beside the bound that ``FairQueue`` proves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from schedulers.fair_queue import FairQueue
from schedulers.policy import Unit


@dataclass(frozen=True, slots=True)
class Gap:
    """Joules over weight. ``bound``: for the two tenants that came closest to it, or beyond."""

    largest: float
    bound: float


@dataclass(slots=True)
class _Pair:
    """Of two tenants: how much further one was than the other, now and at its extremes since both wait."""

    now: float = 0.0
    low: float = math.inf
    high: float = -math.inf


class Gaps:
    """Watches a queue. ``calls``: takings in which tenants may be served before any of their charges is corrected."""

    def __init__(self, queue: FairQueue[Unit], weights: dict[str, float], calls: int = 1) -> None:
        self._queue = queue
        self._weights = weights
        self._calls = calls
        self._pairs = {pair: _Pair() for pair in combinations(weights, 2)}
        self._largest_gap = dict.fromkeys(self._pairs, 0.0)
        #: Largest charge of a tenant in one call, and the largest correction of one.
        self._charge = dict.fromkeys(weights, 0.0)
        self._correction = dict.fromkeys(weights, 0.0)
        for name in ("take", "take_alike"):
            setattr(queue, name, self._watched(getattr(queue, name)))
        remove, correct = queue.remove, queue.correct

        def removed(unit: Unit) -> None:
            remove(unit)
            self._forget()

        def corrected(tenant: str, joules: float) -> None:
            self._correction[tenant] = max(self._correction[tenant], abs(joules))
            self._move({tenant: joules})
            correct(tenant, joules)

        queue.remove, queue.correct = removed, corrected  # type: ignore[method-assign]
        self._is_inside = False

    def _watched(self, method: Any) -> Any:
        def call(*args: Any, **options: Any) -> tuple[list[Unit], list[Unit]]:
            if self._is_inside:  # one of the two calls the other
                return method(*args, **options)  # type: ignore[no-any-return]
            self._is_inside = True
            self._begin()
            is_together = "fits" in options or len({unit.batch_key for unit in self._queue}) > 1
            units, late = method(*args, **options)
            self._is_inside = False
            charges: dict[str, float] = {}
            for unit in units:
                charges[unit.tenant] = charges.get(unit.tenant, 0.0) + unit.joules
                largest = charges[unit.tenant] if is_together else unit.joules
                self._charge[unit.tenant] = max(self._charge[unit.tenant], largest)
            self._forget()  # a tenant that ran out in this call had no more to be served
            self._move(charges)
            return units, late

        return call

    def _begin(self) -> None:
        waiting = {unit.tenant for unit in self._queue}
        for (one, other), pair in self._pairs.items():
            if one in waiting and other in waiting:
                pair.low, pair.high = min(pair.low, pair.now), max(pair.high, pair.now)

    def _forget(self) -> None:
        """A pair of which one does not wait begins anew."""
        waiting = {unit.tenant for unit in self._queue}
        for (one, other), pair in self._pairs.items():
            if one not in waiting or other not in waiting:
                pair.low, pair.high = math.inf, -math.inf

    def _move(self, charges: dict[str, float]) -> None:
        for (one, other), pair in self._pairs.items():
            pair.now += charges.get(one, 0.0) / self._weights[one] - charges.get(other, 0.0) / self._weights[other]
            if pair.low < math.inf:
                pair.low, pair.high = min(pair.low, pair.now), max(pair.high, pair.now)
                self._largest_gap[one, other] = max(self._largest_gap[one, other], pair.high - pair.low)

    def worst(self) -> Gap:
        """The pair that came closest to its bound."""
        gaps = [Gap(gap, self._allowed(one) + self._allowed(other)) for (one, other), gap in self._largest_gap.items()]
        return max(gaps, key=lambda gap: gap.largest / gap.bound)

    def _allowed(self, tenant: str) -> float:
        return (self._charge[tenant] + self._calls * self._correction[tenant]) / self._weights[tenant]
