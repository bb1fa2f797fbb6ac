"""When waiting units have to be looked at again: at most one moment each that counts, the earliest one set."""

from __future__ import annotations

import math
from collections.abc import Collection
from heapq import heapify, heappop, heappush

from schedulers.policy import Unit

#: Stale timers are swept out when all timers outnumber twice the live units by this many.
_MAX_STALE = 4096


class Timers:
    """A heap with lazy deletion: what is set is not taken back, but ignored when it comes."""

    def __init__(self) -> None:
        #: (when, tie-break, unit); a unit may have several, some of them stale, and needs at most one.
        self._heap: list[tuple[float, int, Unit]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def set(self, unit: Unit, when_s: float) -> None:
        """Make sure that ``due`` names this waiting unit then."""
        unit.timer_s = when_s
        heappush(self._heap, (when_s, unit.number, unit))

    def due(self, now_s: float, live: Collection[Unit]) -> list[Unit]:
        """Take out the timers that have come; their units, if they wait. A unit may be named twice."""
        heap = self._heap
        units = []
        while heap and heap[0][0] <= now_s:
            unit = heappop(heap)[2]
            unit.timer_s = math.inf
            if unit.is_waiting:
                units.append(unit)
        if len(heap) > 2 * len(live) + _MAX_STALE:
            self._sweep(live)
        return units

    def next_s(self) -> float | None:
        """The earliest that counts."""
        heap = self._heap
        while heap and not heap[0][2].is_waiting:
            heappop(heap)[2].timer_s = math.inf
        return heap[0][0] if heap else None

    def _sweep(self, live: Collection[Unit]) -> None:
        self._heap = [timer for timer in self._heap if timer[2].is_waiting and timer[0] == timer[2].timer_s]
        heapify(self._heap)
        for unit in live:
            if not unit.is_waiting:  # it gets a new timer when it waits again
                unit.timer_s = math.inf
