"""The only async loop around a scheduler: feeds it what happened, carries out what it decides.

    submit / cancel / batch done / timer  ->  Scheduler.handle(now, events)  ->  RunSlice, Finish, Reject, Fail, Release

The engine runs in a process of its own or, if it blocks, on a thread; everything else happens on the event loop.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import structlog

from models.contract import Point
from models.inputs import Inputs
from schedulers.policies.exits import ExitWork
from schedulers.types import (
    Decision,
    Drain,
    Event,
    Fail,
    Finish,
    Priority,
    Reject,
    RejectReason,
    Release,
    RunSlice,
    Scheduler,
    SliceFinished,
    SliceResult,
    Tick,
    UnitArrived,
    UnitCancelled,
)
from serving.errors import (
    Cancelled,
    DeadlineExceeded,
    DeadlineUnreachable,
    Draining,
    EngineFailed,
    QueueFull,
    ServingError,
)
from serving.replica.staged.base import NOTHING_SET, Outcome, Outputs, StagedEngine, Starting
from serving.telemetry.events import BatchRan, SampleAnswered, Sink, ignore

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One sample's answer and what it cost. ``compute_s`` is its equal share of every batch it was in."""

    outputs: Outputs
    exit_index: int
    degraded: bool
    queue_s: float
    compute_s: float


@dataclass(eq=False, slots=True)
class Stay:
    """What a caller knows of its sample while it is here. ``compute_s`` as in ``Answer``, also without one."""

    compute_s: float = 0.0
    _has_left: bool = False
    _take_out: Callable[[], None] | None = None

    def leave(self) -> None:
        """Take the sample out, at the next stage boundary if it is running: ``submit`` then raises Cancelled."""
        self._has_left = True
        if self._take_out is not None:
            self._take_out()


@dataclass(slots=True)
class _Sample:
    future: asyncio.Future[Answer]
    arrived_s: float
    stay: Stay
    wall_compute_s: float = 0.0
    error: ServingError | None = None


@dataclass(slots=True)
class Driver:
    """Owns a scheduler and an engine. ``start`` it on the loop that will call ``submit``; ``stop`` drains it.

    ``size_of``: (inputs, settings) -> the work of a sample beside that of a usual one.
    """

    scheduler: Scheduler
    engine: StagedEngine
    size_of: Callable[[Inputs, Point], float] = lambda inputs, settings: 1.0
    model: str = ""
    tell: Sink = ignore
    clock: Callable[[], float] = time.monotonic
    num_executors: int = 1
    _samples: dict[int, _Sample] = field(default_factory=dict, init=False)
    _next_id: int = field(default=0, init=False)
    _arrivals: list[UnitArrived] = field(default_factory=list, init=False)
    _pool: ThreadPoolExecutor | None = field(default=None, init=False)
    _timer: asyncio.TimerHandle | None = field(default=None, init=False)
    #: Done when the last batch has come back.
    _idle: asyncio.Future[None] | None = field(default=None, init=False)
    _due_s: dict[int, float] = field(default_factory=dict, init=False)

    def start(self) -> None:
        """Bring up the engine's thread. Once only."""
        if self._pool is not None:
            raise RuntimeError("the driver has been started already")
        self._pool = ThreadPoolExecutor(max_workers=self.num_executors, thread_name_prefix="engine")

    async def stop(self) -> None:
        """Refuse new samples, finish the ones that are here, end the thread."""
        self._feed(Drain())
        pending = [sample.future for sample in self._samples.values()]
        if pending:
            await asyncio.wait(pending)
        if self._due_s:
            self._idle = asyncio.get_running_loop().create_future()
            await self._idle
        if self._timer:
            self._timer.cancel()
        if self._pool:
            self._pool.shutdown(wait=True)

    @property
    def num_samples(self) -> int:
        """Samples waiting or running."""
        return len(self._samples)

    def queued_s(self) -> float:
        """Predicted seconds of work waiting and running."""
        return self.scheduler.queued_s(self.clock())

    def overdue_s(self) -> float:
        """How long an engine call has gone on beyond what was predicted of it; 0 when none has."""
        return max((0.0, *(self.clock() - due_s for due_s in self._due_s.values())))

    async def submit(
        self,
        inputs: Inputs,
        *,
        deadline_s: float,
        thresholds: tuple[float, ...],
        settings: Point = NOTHING_SET,
        priority: Priority = Priority.NORMAL,
        tenant: str = "",
        stay: Stay | None = None,
    ) -> Answer:
        """Run one sample; ``inputs`` is what its family prepared, ``deadline_s`` is absolute on this driver's clock.

        Cancelling the call takes the sample out, at the next stage boundary if it is running. So does ``stay.leave``,
        which also tells what it took.

        Raises:
            ServingError: its single outcome when that is not an answer; EngineFailed also when the deadline is not a
                number, there is not one threshold per exit or no such setting (a gateway of another version, say).
            RuntimeError: the driver has not been started.
        """
        if self._pool is None:
            raise RuntimeError("call Driver.start before submit")
        try:
            if len(thresholds) != self.engine.num_stages or math.isnan(deadline_s):
                raise ValueError("one threshold per exit, and a deadline that is a number")
            work = ExitWork(thresholds, self.size_of(inputs, settings))
        except ValueError as error:
            _log.error("sample does not fit the model", deadline_s=deadline_s, thresholds=thresholds, error=str(error))
            raise EngineFailed("this replica runs another version of the model; retry") from None
        stay = stay or Stay()
        if stay._has_left:
            raise _left()
        sample_id = self._next_id
        self._next_id += 1
        batch_key = self.engine.admit(sample_id, inputs, settings)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._samples[sample_id] = _Sample(future, self.clock(), stay)
        stay._take_out = partial(self._feed, UnitCancelled(unit_id=sample_id))
        self._arrive(
            UnitArrived(
                unit_id=sample_id,
                work=work,
                deadline_s=deadline_s,
                priority=priority,
                tenant=tenant,
                batch_key=batch_key,
            )
        )
        try:
            return await future
        except asyncio.CancelledError:
            self._feed(UnitCancelled(unit_id=sample_id))
            raise

    # -- feeding the scheduler -----------------------------------------------------------------------------------

    def _arrive(self, arrival: UnitArrived) -> None:
        """Samples of one call come in one turn of the loop: the scheduler sees them all before it fills a batch."""
        self._arrivals.append(arrival)
        if len(self._arrivals) == 1:
            asyncio.get_running_loop().call_soon(self._feed)

    def _feed(self, *events: Event) -> None:
        arrivals, self._arrivals = self._arrivals, []
        if not arrivals and not events:
            return
        decisions = self.scheduler.handle(self.clock(), *arrivals, *events)
        for decision in decisions:
            if isinstance(decision, RunSlice):  # first: the engine has nothing to do
                self._run(decision)
        for decision in decisions:
            self._carry_out(decision)
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wakeup_s = self.scheduler.next_wakeup_s()
        if wakeup_s is not None:
            delay_s = max(0.0, wakeup_s - self.clock())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._feed, Tick())

    # -- carrying out decisions ----------------------------------------------------------------------------------

    def _carry_out(self, decision: Decision) -> None:
        match decision:
            case Finish(unit_id=sample_id):
                self._reply(sample_id, decision)
            case Reject(unit_id=sample_id):
                self._end(sample_id, rejection(decision))
            case Fail(unit_id=sample_id):
                self._end(sample_id, self._samples[sample_id].error or EngineFailed("the model failed on this image"))
            case Release(unit_id=sample_id):
                self._end(sample_id, _left())

    def _run(self, batch: RunSlice) -> None:
        started_s = self.clock()
        self._due_s[batch.slice_id] = started_s + batch.predicted_s
        done = partial(self._ran, batch, started_s)
        if isinstance(self.engine, Starting):
            self.engine.start(batch.stage, batch.num_stages, batch.unit_ids, done)
            return
        arguments = (batch.stage, batch.num_stages, batch.unit_ids)
        running = asyncio.get_running_loop().run_in_executor(self._pool, self.engine.run, *arguments)
        running.add_done_callback(lambda ran: done(cast("Exception | None", ran.exception()) or ran.result()))

    def _ran(self, batch: RunSlice, started_s: float, outcomes: list[Outcome] | Exception) -> None:
        """Engines report failures as outcomes; a bug in one must not strand its samples all the same."""
        del self._due_s[batch.slice_id]
        elapsed_s, size = self.clock() - started_s, len(batch.unit_ids)
        if isinstance(outcomes, Exception) or len(outcomes) != size:
            cause = outcomes if isinstance(outcomes, Exception) else None
            _log.error("engine gave no outcomes", stage=batch.stage, batch_size=size, exc_info=cause)
            outcomes = [EngineFailed("the model failed on this batch; retry") for _ in batch.unit_ids]
        results = tuple(
            self._account(sample_id, outcome, elapsed_s, size)
            for sample_id, outcome in zip(batch.unit_ids, outcomes, strict=True)
        )
        self._feed(SliceFinished(slice_id=batch.slice_id, results=results, elapsed_s=elapsed_s))
        self.tell(BatchRan(self.model, batch.stage, size, elapsed_s, batch.predicted_s))
        if self._idle is not None and not self._due_s:
            self._idle.set_result(None)

    def _account(self, sample_id: int, outcome: Outcome, elapsed_s: float, size: int) -> SliceResult:
        sample = self._samples[sample_id]
        sample.stay.compute_s += elapsed_s / size
        sample.wall_compute_s += elapsed_s
        if isinstance(outcome, ServingError):
            sample.error = outcome
            return SliceResult(unit_id=sample_id, failed=True)
        return SliceResult(unit_id=sample_id, report=outcome.confidence)

    def _reply(self, sample_id: int, reply: Finish) -> None:
        try:
            outputs = self.engine.result(sample_id, reply.stage)
        except Exception:
            # The other decisions of this round must still be carried out.
            _log.exception("engine has no result", exit_index=reply.stage)
            self._end(sample_id, EngineFailed("the model failed on this image; retry"))
            return
        sample = self._samples.pop(sample_id)
        answer = Answer(
            outputs=outputs,
            exit_index=reply.stage,
            degraded=reply.degraded,
            queue_s=max(0.0, self.clock() - sample.arrived_s - sample.wall_compute_s),
            compute_s=sample.stay.compute_s,
        )
        self.engine.release(sample_id)
        if not sample.future.done():
            sample.future.set_result(answer)
        self.tell(SampleAnswered(self.model, answer.exit_index, answer.degraded, answer.queue_s, answer.compute_s))

    def _end(self, sample_id: int, error: ServingError) -> None:
        sample = self._samples.pop(sample_id)
        self.engine.release(sample_id)
        if not sample.future.done():
            sample.future.set_exception(error)


def _left() -> Cancelled:
    return Cancelled("the caller went away")


def rejection(decision: Reject) -> ServingError:
    """The error that a caller sees for a scheduler's refusal."""
    wait = f"retry in {decision.retry_after_s:.2f} s"
    match decision.reason:
        case RejectReason.QUEUE_FULL:
            return QueueFull(f"the queue is full; {wait}", retry_after_s=decision.retry_after_s)
        case RejectReason.DEADLINE_PASSED:
            return DeadlineExceeded("the deadline passed while the request waited; allow more latency_ms, or retry")
        case RejectReason.DEADLINE_UNREACHABLE:
            return DeadlineUnreachable(
                f"the queue is too long for this deadline; {wait}, or allow more latency_ms",
                retry_after_s=decision.retry_after_s,
            )
        case RejectReason.DRAINING:
            return Draining(f"this replica is stopping; {wait}", retry_after_s=decision.retry_after_s)
