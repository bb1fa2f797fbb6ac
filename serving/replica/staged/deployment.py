"""The node of the graph for rows: a driver, an early-exit scheduler and an engine around one unary or staged model.

Gateways push calls of one or more samples; each call comes back when its last sample is done. A
replica of a model that makes pictures pulls durable jobs as well (``jobs``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import structlog
from ray import serve

from models.io import ImageIO
from schedulers.types import Priority
from serving.config import ResolvedConfig, ResolvedModel, UnaryOptions
from serving.delivery.unary.wire import SampleAnswer, SampleCall, SampleFailure, SampleOutcome, pack
from serving.energy.choose import replica_energy
from serving.energy.spent import Spent
from serving.operating_points import points_of
from serving.replica.driver import Answer, Call, Stay
from serving.replica.staged.base import NOTHING_SET
from serving.replica.staged.setup import build_driver, start_engine
from serving.stores.tenants import build_watch
from serving.system.process import freeze_start_up
from serving.telemetry import setup, tracing
from serving.tenants import LiveTenants

if TYPE_CHECKING:
    from serving.replica.job.setup import JobParts

_log = structlog.get_logger(__name__)
_STUCK_S = 30.0
"""An engine call that takes so much longer than predicted means a dead engine; the controller then replaces the
replica."""


class Classifier:
    """Ray Serve deployment class. One model, whose engine has a process of its own."""

    # Serve awaits a constructor that is a coroutine: jobs are then claimed on the loop that calls come by.
    async def __init__(self, model: ResolvedModel[UnaryOptions], config: ResolvedConfig) -> None:  # type: ignore[misc]
        tell = setup(config.metrics_dir, config.settings.log_level)
        started_s = time.monotonic()
        self._engine = start_engine(model)
        tenants = LiveTenants(config.settings.tenants)
        self._watch = build_watch(config, tenants)
        await self._watch.begin()
        self._energy = replica_energy(model, config.settings.energy.meter, tell, points_of(model).watts)
        measured = self._engine.measured
        self._driver = build_driver(model, self._engine, measured, tell, tenants.weights, self._energy)
        self._driver.start()
        self._meter = asyncio.get_running_loop().create_task(self._energy.run())
        self._num_reports = 0
        self._calls: dict[str, Call] = {}
        self._jobs: JobParts | None = None
        if isinstance(model.variant.io, ImageIO):
            from serving.replica.staged.jobs import build_row_jobs

            name = serve.get_replica_context().replica_id.unique_id
            self._jobs = build_row_jobs(model, config, tenants, name, tell, self._driver)
            await self._jobs.start()
            self._reporter = asyncio.get_running_loop().create_task(self._jobs.report(tell))
        freeze_start_up()
        _log.info("classifier ready", model=model.id, seconds=round(time.monotonic() - started_s, 2))

    async def run(
        self, samples: Sequence[SampleCall], call_id: str = "", predicted_s: float = 0.0
    ) -> list[SampleOutcome]:
        """Answer each sample, in order. ``call_id``, never used twice, is for ``leave``; ``predicted_s`` is read by the
        request router, not here."""
        driver, call = self._driver, Call([Stay() for _ in samples])
        now_s = driver.clock()
        for stay, sample in zip(call.stays, samples, strict=True):
            driver.take(
                stay,
                sample.inputs,
                deadline_s=now_s + sample.remaining_s,
                thresholds=sample.thresholds,
                settings=sample.settings or NOTHING_SET,
                priority=Priority(sample.priority),
                tenant=sample.tenant,
                elsewhere_j=sample.elsewhere_j,
            )
        self._calls[call_id] = call
        try:
            await call.wait()
        finally:
            del self._calls[call_id]
        for stay, sample in zip(call.stays, samples, strict=True):
            if sample.traceparent and isinstance(answer := stay.outcome, Answer):
                run_s = answer.ended_s - now_s - answer.queue_s
                ago_s = driver.clock() - answer.ended_s
                spans = (("queue", answer.queue_s), ("run", run_s))
                tracing.record(sample.traceparent, *spans, ago_s=ago_s, run=driver.spent(stay).attributes)
        return [_to_wire(stay, driver.spent(stay)) for stay in call.stays]

    async def leave(self, places: Mapping[str, Sequence[int]]) -> list[str]:
        """Callers of some samples of some calls have gone: the samples end at the next stage boundary, and their call
        tells what they took. Returns the calls that run here."""
        here = [call_id for call_id in places if call_id in self._calls]
        for call_id in here:
            for place in places[call_id]:
                self._calls[call_id].stays[place].leave()
        return here

    def record_routing_stats(self) -> dict[str, Any]:
        """What the request router wants to know about this replica."""
        self._num_reports += 1
        return {"queued_s": self._driver.queued_s(), "report": self._num_reports}

    def check_health(self) -> None:
        """Called by the controller.

        Raises: RuntimeError: the engine has been stuck in one call, or its process has ended.
        """
        if not self._engine.is_alive:
            raise RuntimeError("the engine's process has ended")
        overdue_s = self._driver.overdue_s()
        if overdue_s > _STUCK_S:
            raise RuntimeError(f"an engine call is overdue by {overdue_s:.0f} s; limit is {_STUCK_S:.0f} s")

    async def __del__(self) -> None:
        """Serve awaits this once the calls in flight are done. Jobs that run are finished, if there is time."""
        if self._jobs is not None:
            self._reporter.cancel()
            await self._jobs.stop()
        await self._driver.stop()
        self._meter.cancel()
        self._engine.close()
        await self._watch.stop()


def _to_wire(stay: Stay, spent: Spent) -> SampleOutcome:
    answer = stay.outcome
    if isinstance(answer, Answer):
        outputs = pack(answer.outputs)
        return SampleAnswer(outputs, answer.exit_index, answer.degraded, answer.queue_s, *spent)
    assert answer is not None
    return SampleFailure(answer, *spent)
