"""The only async loop around a scheduler: feeds it what happened, carries out what it decides.

    submit / cancel / batch done / timer  ->  Scheduler.handle(now, events)  ->  RunSlice, Finish, Reject, Fail, Release

The engine runs in a process of its own or, if it blocks, on a thread; everything else happens on the event loop.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, NamedTuple, cast

import structlog

from models.contract import Point
from models.inputs import Inputs
from schedulers.cost import CostModel
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
from serving.energy.meter import ESTIMATE
from serving.energy.replica import ReplicaEnergy
from serving.energy.spent import Spent
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


class Answer(NamedTuple):
    """One sample's answer and what it cost. ``compute_s`` is its equal share of every batch it was in; ``ended_s`` is
    on the driver's clock."""

    outputs: Outputs
    exit_index: int
    degraded: bool
    queue_s: float
    compute_s: float
    ended_s: float


def _nobody(stay: Stay) -> None:
    """Nobody waits for it."""


@dataclass(eq=False, slots=True)
class Stay:
    """One sample while it is here. ``ended`` is called once, when it has its ``outcome``; ``compute_s`` as in
    ``Answer``, also without one. ``joules``: of these seconds; None: a meter said nothing of some."""

    ended: Callable[[Stay], None] = _nobody
    compute_s: float = 0.0
    joules: float | None = 0.0
    outcome: Answer | ServingError | None = None
    _arrived_s: float = 0.0
    _wall_compute_s: float = 0.0
    _has_left: bool = False
    _take_out: Callable[[Event], None] | None = None
    _sample_id: int = -1

    def leave(self) -> None:
        """Take the sample out, at the next stage boundary if it is running: its outcome is then Cancelled."""
        self._has_left = True
        if self._take_out is not None:
            self._take_out(UnitCancelled(unit_id=self._sample_id))

    def _end(self, outcome: Answer | ServingError) -> None:
        self.outcome = outcome
        self.ended(self)


class Call:
    """Samples that are waited for together, with one future. Make it before they come."""

    def __init__(self, stays: Sequence[Stay]) -> None:
        self.stays = stays
        for stay in stays:
            stay.ended = self._ended
        self._num_open = len(stays)
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def _ended(self, stay: Stay) -> None:
        self._num_open -= 1
        if not self._num_open and not self._done.done():
            self._done.set_result(None)

    async def wait(self) -> None:
        """Until every sample has its outcome. Cancelling takes all of them out."""
        try:
            if self._num_open:
                await self._done
        except asyncio.CancelledError:
            for stay in self.stays:
                stay.leave()
            raise


@lru_cache(maxsize=256)
def _work(thresholds: tuple[float, ...], size: float) -> ExitWork:
    return ExitWork(thresholds, size)


@dataclass(slots=True)
class Driver:
    """Owns a scheduler and an engine. ``start`` it on the loop that will call ``submit``; ``stop`` drains it.

    ``size_of``: (inputs, settings) -> the work of a sample beside that of a usual one. ``cost``: what the scheduler
    predicts with, to tell how it is corrected.
    """

    scheduler: Scheduler
    engine: StagedEngine
    size_of: Callable[[Inputs, Point], float] = lambda inputs, settings: 1.0
    model: str = ""
    tell: Sink = ignore
    energy: ReplicaEnergy | None = None
    clock: Callable[[], float] = time.monotonic
    cost: CostModel | None = None
    num_executors: int = 1
    _stays: dict[int, Stay] = field(default_factory=dict, init=False)
    _next_id: int = field(default=0, init=False)
    _arrivals: list[UnitArrived] = field(default_factory=list, init=False)
    _pool: ThreadPoolExecutor | None = field(default=None, init=False)
    _timer: asyncio.TimerHandle | None = field(default=None, init=False)
    #: When it ticks, on this driver's clock.
    _tick_s: float = field(default=math.inf, init=False)
    #: Done when the last sample has gone and the last batch has come back.
    _idle: asyncio.Future[None] | None = field(default=None, init=False)
    _due_s: dict[int, float] = field(default_factory=dict, init=False)
    #: Numbers of the slices that run, for ``energy``.
    _metered: dict[int, int] = field(default_factory=dict, init=False)

    def start(self) -> None:
        """Bring up the engine's thread. Once only."""
        if self._pool is not None:
            raise RuntimeError("the driver has been started already")
        self._pool = ThreadPoolExecutor(max_workers=self.num_executors, thread_name_prefix="engine")

    async def stop(self) -> None:
        """Refuse new samples, finish the ones that are here, end the thread."""
        self._feed(Drain())
        if self._stays or self._due_s:
            self._idle = asyncio.get_running_loop().create_future()
            await self._idle
        if self._timer:
            self._timer.cancel()
        if self._pool:
            self._pool.shutdown(wait=True)

    @property
    def num_samples(self) -> int:
        """Samples waiting or running."""
        return len(self._stays)

    def queued_s(self) -> float:
        """Predicted seconds of work waiting and running."""
        return self.scheduler.queued_s(self.clock())

    def overdue_s(self) -> float:
        """How long an engine call has gone on beyond what was predicted of it; 0 when none has."""
        return max((0.0, *(self.clock() - due_s for due_s in self._due_s.values())))

    def spent(self, stay: Stay) -> Spent:
        """What a sample has taken so far."""
        return Spent(stay.compute_s, stay.joules, ESTIMATE if self.energy is None else self.energy.source)

    async def submit(self, inputs: Inputs, *, stay: Stay | None = None, **asked: Any) -> Answer:
        """``take`` one sample and wait for its answer. Cancelling takes it out.

        Raises: ServingError: its outcome when that is not an answer.
        """
        stay = stay or Stay()
        call = Call([stay])
        self.take(stay, inputs, **asked)
        await call.wait()
        if isinstance(stay.outcome, Answer):
            return stay.outcome
        assert stay.outcome is not None
        raise stay.outcome

    def take(
        self,
        stay: Stay,
        inputs: Inputs,
        *,
        deadline_s: float,
        thresholds: tuple[float, ...],
        settings: Point = NOTHING_SET,
        priority: Priority = Priority.NORMAL,
        tenant: str = "",
        elsewhere_j: float = 0.0,
    ) -> None:
        """Run one sample; ``inputs`` is what its family prepared, ``deadline_s`` is absolute on this driver's clock.
        ``elsewhere_j``: joules that its tenant was served by other models (``schedulers.elsewhere``).

        ``stay`` gets its single outcome: at once if the sample cannot stay. That is EngineFailed also when the deadline
        is not a number, there is not one threshold per exit or no such setting (a gateway of another version, say).

        Raises: RuntimeError: the driver has not been started.
        """
        if self._pool is None:
            raise RuntimeError("call Driver.start before a sample comes")
        if stay._has_left:
            stay._end(_left())
            return
        sample_id = self._next_id
        self._next_id += 1
        try:
            if len(thresholds) != self.engine.num_stages or math.isnan(deadline_s):
                raise ValueError("one threshold per exit, and a deadline that is a number")
            work = _work(thresholds, self.size_of(inputs, settings))
            batch_key = self.engine.admit(sample_id, inputs, settings)
        except ValueError as error:
            _log.error("sample does not fit the model", deadline_s=deadline_s, thresholds=thresholds, error=str(error))
            stay._end(EngineFailed("this replica runs another version of the model; retry"))
            return
        except ServingError as error:
            stay._end(error)
            return
        self._stays[sample_id] = stay
        stay._sample_id, stay._arrived_s, stay._take_out = sample_id, self.clock(), self._feed
        self._arrivals.append(
            UnitArrived(
                unit_id=sample_id,
                work=work,
                deadline_s=deadline_s,
                priority=priority,
                tenant=tenant,
                batch_key=batch_key,
                elsewhere_j=elsewhere_j,
            )
        )
        # Samples that come in one turn of the loop are told together: all are there before a batch is filled.
        if len(self._arrivals) == 1:
            asyncio.get_running_loop().call_soon(self._feed)

    # -- feeding the scheduler -----------------------------------------------------------------------------------

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
        if self._idle is not None and not self._stays and not self._due_s and not self._idle.done():
            self._idle.set_result(None)

    def _set_timer(self) -> None:
        """A tick that comes too early does no harm: what it was for has gone."""
        wakeup_s = self.scheduler.next_wakeup_s()
        if wakeup_s is None or wakeup_s >= self._tick_s:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._tick_s = wakeup_s
        self._timer = asyncio.get_running_loop().call_later(max(0.0, wakeup_s - self.clock()), self._tick)

    def _tick(self) -> None:
        self._timer, self._tick_s = None, math.inf
        self._feed(Tick())

    # -- carrying out decisions ----------------------------------------------------------------------------------

    def _carry_out(self, decision: Decision) -> None:
        match decision:
            case Finish():
                self._reply(decision)
            case Reject():
                self._end(decision.unit_id, rejection(decision))
            case Fail():
                failure = cast("ServingError | None", self._stays[decision.unit_id].outcome)
                self._end(decision.unit_id, failure or EngineFailed("the model failed on this image"))
            case Release():
                self._end(decision.unit_id, _left())

    def _run(self, batch: RunSlice) -> None:
        started_s = self.clock()
        self._due_s[batch.slice_id] = started_s + batch.predicted_s
        if self.energy is not None:
            self._metered[batch.slice_id] = self.energy.slices.enter(started_s)
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
        results, stays, share_s = [], self._stays, elapsed_s / size
        joules = self._joules(batch, elapsed_s)
        for sample_id, outcome in zip(batch.unit_ids, outcomes, strict=True):
            stay = stays[sample_id]
            stay.compute_s += share_s
            stay.joules = None if joules is None or stay.joules is None else stay.joules + joules / size
            stay._wall_compute_s += elapsed_s
            if isinstance(outcome, ServingError):
                stay.outcome = outcome
                results.append(SliceResult(unit_id=sample_id, failed=True))
            else:
                results.append(SliceResult(unit_id=sample_id, report=outcome))
        self._feed(SliceFinished(slice_id=batch.slice_id, results=tuple(results), elapsed_s=elapsed_s))
        correction = 1.0 if self.cost is None else self.cost.correction(batch.stage)
        self.tell(BatchRan(self.model, batch.stage, size, elapsed_s, batch.predicted_s, correction))

    def _joules(self, batch: RunSlice, elapsed_s: float) -> float | None:
        if self.energy is None:
            return None
        self.energy.slices.leave(self._metered.pop(batch.slice_id), elapsed_s)
        return self.energy.take(elapsed_s)

    def _reply(self, reply: Finish) -> None:
        sample_id = reply.unit_id
        try:
            outputs = self.engine.result(sample_id, reply.stage)
        except Exception:
            # The other decisions of this round must still be carried out.
            _log.exception("engine has no result", exit_index=reply.stage)
            self._end(sample_id, EngineFailed("the model failed on this image; retry"))
            return
        stay = self._stays.pop(sample_id)
        now_s = self.clock()
        queue_s = max(0.0, now_s - stay._arrived_s - stay._wall_compute_s)
        self.engine.release(sample_id)
        stay._end(
            Answer(
                outputs=outputs,
                exit_index=reply.stage,
                degraded=reply.degraded,
                queue_s=queue_s,
                compute_s=stay.compute_s,
                ended_s=now_s,
            )
        )
        self.tell(SampleAnswered(self.model, reply.stage, reply.degraded, queue_s, stay.compute_s))

    def _end(self, sample_id: int, error: ServingError) -> None:
        stay = self._stays.pop(sample_id)
        self.engine.release(sample_id)
        stay._end(error)


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
