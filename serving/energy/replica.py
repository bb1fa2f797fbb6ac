"""A replica's meter and account: read once a second, and asked at the end of every slice what its seconds cost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple

import structlog

from schedulers.energy import EnergyAccount, Split, Window, WorkClock
from serving.energy.meter import ESTIMATE, Meter, Reading
from serving.telemetry.events import EnergyMetered, Sink, ignore

_log = structlog.get_logger(__name__)
WINDOW_S = 1.0
STALE_S = 10.0
"""Without a reading for so long, nothing is said any more."""


class _Point(NamedTuple):
    at_s: float
    joules: float
    work_s: float


class ReplicaEnergy:
    """``meter`` None: joules are busy seconds times ``watts``, the declared power of one, and nothing is read. So are
    those of the estimate before its first window. ``work_s``: (now) -> busy seconds of requests, those that run
    included.

    Use from one event loop: ``run`` it as a task.
    """

    def __init__(
        self,
        meter: Meter | None,
        *,
        watts: float,
        model: str = "",
        tell: Sink = ignore,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.slices = WorkClock()
        self.work_s: Callable[[float], float] = self.slices.read
        self._meter = meter
        self._watts = watts
        self._account = EnergyAccount(declared_watts=watts if self.source == ESTIMATE else None)
        self._model, self._tell, self._now = model, tell, now
        self._last: _Point | None = None
        self._began_s = now()

    @property
    def source(self) -> str:
        """Where its joules come from."""
        return ESTIMATE if self._meter is None else self._meter.source

    def take(self, work_s: float) -> float | None:
        """Joules of busy seconds of one request, said now; None: the meter has not said anything yet, or any more."""
        return self._watts * work_s if self._meter is None else self._account.take(work_s)

    def forgo(self, work_s: float) -> None:
        """Busy seconds that nobody is told."""
        self._account.forgo(work_s)

    async def run(self) -> None:
        """Close a window every second. Until cancelled."""
        while self._meter is not None:
            self.look(await asyncio.to_thread(self._meter.read))  # a driver may take its time
            await asyncio.sleep(WINDOW_S)

    def look(self, reading: Reading | None) -> None:
        """Close the window that this reading ends."""
        now_s = self._now()
        if reading is None:
            if now_s - (self._last.at_s if self._last else self._began_s) > STALE_S:
                self._account.lapse()
            return
        point = _Point(now_s, reading.joules, self.work_s(now_s))
        last, self._last = self._last, point
        if last is None or now_s <= last.at_s:
            return
        work_s = max(0.0, point.work_s - last.work_s)
        if point.joules < last.joules:
            _log.warning("the energy counter began anew", model=self._model, source=self.source)
            self._account.lose(work_s)
            return
        split = self._account.close(
            Window(
                seconds=now_s - last.at_s,
                joules=point.joules - last.joules,
                work_s=work_s,
                is_idle=reading.is_idle and not work_s,
                own_active=reading.own,
                own_idle=1.0 if self._meter is None else self._meter.own_idle,
            )
        )
        self._count(split)

    def _count(self, split: Split) -> None:
        self._tell(
            EnergyMetered(
                model=self._model,
                source=self.source,
                metered_j=split.metered_j,
                idle_j=split.idle_j,
                elsewhere_j=split.elsewhere_j,
                carried_j=self._account.carried_j,
            )
        )
