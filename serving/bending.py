"""How far the requests of one gateway give way to load, and what is said of an answer that is not at its best point."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from models.contract import Shape
from schedulers.bending import Limits, Pressure, Shares, depth, limits_of
from schedulers.fair_queue import EQUAL, Weights
from schedulers.plan import Plan
from schedulers.types import Priority as SchedulerPriority
from serving.config.sections import BendingSettings
from serving.domain import Degradation, Priority
from serving.telemetry.events import BendingChanged, PointsLowered, Sink, ignore

_FEW, _LEAST_S = 2.0, 0.05
_PRIORITIES = {
    Priority.LOW: SchedulerPriority.LOW,
    Priority.NORMAL: SchedulerPriority.NORMAL,
    Priority.HIGH: SchedulerPriority.HIGH,
}


def queue_limit_s(after_s: float, usual_s: float, *, gateways: int = 1, room: float = math.inf) -> float:
    """Seconds of queue from which the quality of a model bends. A gateway sees its own part of the queue. Of what takes
    long, a few must wait before it is one. ``usual_s``: of a usual request at the dearest point. ``room``: requests
    at a time of which half are a queue however short they are, so that quality bends before any is refused."""
    half_s = room * usual_s / 2 if usual_s else math.inf
    return max(_LEAST_S, min(max(after_s / gateways, _FEW * usual_s), half_s))


def bends_after_s(settings: BendingSettings, shape: Shape, usual_s: float, *, gateways: int, room: float) -> float:
    """``queue_limit_s`` of a model. ``usual_s``: on all of its replicas. ``room``: of the gateway, or of the queue of
    jobs, which all gateways share."""
    match shape:
        case "job":
            return queue_limit_s(settings.jobs_after_s, usual_s, room=room)
        case "stream":  # and never before a chat waits as long as it takes: see ``Bending.depth``
            return queue_limit_s(settings.chat_after_s, 0.0, gateways=gateways)
        case _:
            return queue_limit_s(settings.rows_after_s, usual_s, gateways=gateways, room=room)


class Bending:
    """Pressure and shares of each model that bends. Use from one event loop. ``gateways``: each sees its own part of a
    queue."""

    def __init__(
        self,
        limits: Mapping[str, Limits],
        weights: Weights = EQUAL,
        clock: Callable[[], float] = time.monotonic,
        tell: Sink = ignore,
        *,
        gateways: int = 1,
    ) -> None:
        self._gateways = gateways
        self._after_s = {model: limit.rise_s for model, limit in limits.items()}
        self._pressures = {model: Pressure(limit) for model, limit in limits.items()}
        self._shares = {model: Shares(weights, fades_s=limit.fall_after_s) for model, limit in limits.items()}
        self._clock = clock
        self._tell = tell
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def bends(self, model: str) -> bool:
        """Whether its quality gives way at all."""
        return model in self._pressures

    def level(self, model: str) -> int:
        """From 0 (none) to ``schedulers.bending.LEVELS``."""
        return self._pressures[model].level if model in self._pressures else 0

    def depth(self, model: str, tenant: str, priority: Priority, queued_s: float, alone_s: float = 0.0) -> float:
        """How far a request that comes now gives way, from 0 to 1. ``queued_s``: the work that waits for the model.
        ``alone_s``: what a request takes by itself, as learnt: nobody gives way for a queue that is shorter."""
        if (pressure := self._pressures.get(model)) is None:
            return 0.0
        after_s = max(self._after_s[model], alone_s / self._gateways)
        if after_s != pressure.limits.rise_s:
            pressure.limits = limits_of(after_s)
        self._observe(model, pressure, queued_s)
        return depth(pressure.level, _PRIORITIES[priority], self._shares[model].of(tenant))

    def planned(self, model: str, tenant: str, seconds: float, degradation: Degradation | None) -> None:
        """A request will take so many seconds, at a point that is lower than its best if there is a ``degradation``."""
        if (shares := self._shares.get(model)) is not None:
            shares.add(self._clock(), tenant, seconds)
        if degradation is not None:
            self._tell(PointsLowered(model, tenant, degradation.reasons))

    def _observe(self, model: str, pressure: Pressure, queued_s: float) -> None:
        before = pressure.level
        pressure.observe(self._clock(), queued_s)
        if pressure.level != before:
            self._tell(BendingChanged(model, pressure.level))
        if pressure.level and model not in self._timers:
            with suppress(RuntimeError):  # outside a loop nobody watches the gauge
                wait_s = pressure.limits.fall_after_s
                self._timers[model] = asyncio.get_running_loop().call_later(wait_s, self._look_again, model)

    def _look_again(self, model: str) -> None:
        """While no request comes, the level falls all the same."""
        del self._timers[model]
        pressure = self._pressures[model]
        self._observe(model, pressure, pressure.expected_s(self._clock()))

    def stop(self) -> None:
        """Leave no timer behind."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()


def degradation_of(made: Plan, rows: int = 1) -> Degradation | None:
    """What a plan gave up against the best point; None where it is the best."""
    if made.best is None:
        return None
    return Degradation(
        from_point=made.best.point.name,
        to_point=made.point.name,
        reasons=tuple(made.degraded),
        quality_before=made.best.point.quality,
        quality_after=made.point.quality,
        energy_j_before=made.best.energy_j * rows,
        energy_j_after=made.energy_j * rows,
    )
