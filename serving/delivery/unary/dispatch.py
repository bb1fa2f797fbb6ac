"""Sends samples to an inner deployment, sharing calls when the way is busy, and sending again when a replica dies.

One handle call costs a millisecond of processor time on the two sides together, several times what a small model
needs. So at most ``max_calls_in_flight`` calls are on the way; what arrives meanwhile leaves together in the next one,
as much as fits: tenants in turn by predicted joules (``schedulers.fair_queue``), the most urgent request of each first.
An idle dispatcher sends at once: nothing ever waits for company.

Whatever becomes of a request, its bill is settled once, with what the replica says that each sample took: when the call
comes back, whether or not somebody still waits for it. What a lost replica did is not known, and costs nothing.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Collection, Hashable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import NamedTuple, Protocol, TypeAlias

import structlog

from schedulers.fair_queue import FairQueue, Weights
from schedulers.fair_wait import FairWait
from schedulers.retry_budget import RetryBudget
from schedulers.running_mean import RunningMean
from schedulers.types import Priority
from schedulers.urgency import queue_key
from serving.delivery.pipeline import is_cancelled_itself, retries_spent
from serving.delivery.unary.wire import SampleCall, SampleOutcome
from serving.errors import ReplicaLost
from serving.telemetry.events import CallRetried, SamplesSent, Sink, ignore

_log = structlog.get_logger(__name__)
MAX_ATTEMPTS = 4
"""A sample that has taken this many replicas with it is not given another."""
_SHARED_ATTEMPTS = 2
"""After this many lost replicas every request travels alone: one of them may be what kills replicas."""
MAX_SAMPLES_PER_CALL = 64
_BACKOFF_S = 0.05
"""Seconds before the second attempt; each further one waits this much longer."""
_LEAVE_TIMEOUT_S = 5.0
_RECENT = 0.2
"""Weight of the newest request in what samples take."""
_LEAST_J = 1e-6
"""Even work predicted to cost nothing takes a turn."""
Settle: TypeAlias = Callable[[Sequence[SampleOutcome]], None]
"""Takes the outcomes of a request, or none when nothing is known to have run."""


class PendingCall(Protocol):
    """A call on its way, as Ray's ``DeploymentResponse``: awaitable and cancellable."""

    def __await__(self) -> object:
        """Wait for the outcomes."""

    def cancel(self) -> None:
        """Stop it where it runs."""


@dataclass(eq=False, slots=True)
class _Job:
    """The samples of one request, and what ``schedulers.fair_queue.Waiting`` says."""

    samples: Sequence[SampleCall]
    predicted_s: float
    sent_by_s: float
    done: asyncio.Future[list[SampleOutcome]]
    settle: Settle | None
    number: int
    tenant: str
    deadline_s: float
    rank: tuple[float, float]
    joules: float
    elsewhere_j: float
    batch_key: Hashable = ()

    def bill(self, outcomes: Sequence[SampleOutcome]) -> None:
        """The first time counts."""
        settle, self.settle = self.settle, None
        if settle is not None:
            settle(outcomes)


class _Call(NamedTuple):
    """A call on its way, and whose samples it carries."""

    jobs: list[_Job]
    pending: PendingCall


@dataclass(eq=False, slots=True)
class Dispatcher:
    """One per served model and gateway.

    ``send(call_id, samples, predicted_s)`` starts a call. ``leave(places by call_id)`` takes samples out of calls and
    returns the calls that were found at a replica. ``is_replica_lost`` tells whether a failed call may be sent again:
    classification is idempotent, so that is whenever the replica, and not the model, failed.
    """

    send: Callable[[str, list[SampleCall], float], PendingCall]
    leave: Callable[[Mapping[str, Sequence[int]]], Awaitable[Collection[str]]]
    is_replica_lost: Callable[[BaseException], bool]
    max_calls_in_flight: int
    num_replicas: int
    retries: RetryBudget
    model: str
    tell: Sink = ignore
    clock: Callable[[], float] = time.monotonic
    weights: Weights = field(default_factory=dict)
    watts: float = 1.0
    _waiting: FairQueue[_Job] = field(init=False)
    _calls: set[asyncio.Task[None]] = field(default_factory=set, init=False)
    _open: dict[str, _Call] = field(default_factory=dict, init=False)
    _left: dict[str, list[int]] = field(default_factory=dict, init=False)
    _teller: asyncio.Task[None] | None = field(default=None, init=False)
    _name: str = field(default_factory=lambda: uuid.uuid4().hex[:12], init=False)
    _numbers: count[int] = field(default_factory=count, init=False)
    _job_numbers: count[int] = field(default_factory=count, init=False)
    _outstanding: FairWait = field(init=False)
    _sample_s: RunningMean = field(default_factory=lambda: RunningMean(_RECENT), init=False)
    """Predicted seconds of a sample, of late."""

    def __post_init__(self) -> None:
        self._waiting = FairQueue(self.weights)
        self._outstanding = FairWait(self.weights)

    def predicted_wait_s(self) -> float:
        """Predicted seconds until all that this gateway has outstanding is done."""
        return self._outstanding.total_s / self.num_replicas

    def predicted_turn_s(self, tenant: str, num_samples: int) -> float:
        """Predicted seconds until so many samples of a tenant, sent now, have had their turn: of what others have
        outstanding, no more than is theirs by then. A tenant that floods makes itself wait, and hardly others."""
        return self._outstanding.wait_s(tenant, num_samples * (self._sample_s.value or 0.0)) / self.num_replicas

    async def run(self, samples: Sequence[SampleCall], predicted_s: float, settle: Settle) -> list[SampleOutcome]:
        """Answer the samples, in order. Cancelling takes them out; ``settle`` is called once in any case.

        Raises: ReplicaLost: replicas died under this call ``MAX_ATTEMPTS`` times; RetriesSpent: under too many others.
        """
        self.retries.add_request(self.clock())
        job = self._job(samples, predicted_s, settle)
        self._waiting.add(job)
        self._outstanding.add(job.tenant, predicted_s)
        self._sample_s.observe(predicted_s / len(samples))
        self._pump()
        try:
            return await job.done
        finally:
            self._outstanding.remove(job.tenant, predicted_s)

    def _job(self, samples: Sequence[SampleCall], predicted_s: float, settle: Settle) -> _Job:
        now_s, first = self.clock(), samples[0]
        deadline_s = now_s + min(sample.remaining_s for sample in samples)
        return _Job(
            samples,
            predicted_s,
            now_s,
            asyncio.get_running_loop().create_future(),
            settle,
            number=next(self._job_numbers),
            tenant=first.tenant,
            deadline_s=deadline_s,
            rank=(queue_key(Priority(first.priority), now_s, deadline_s, predicted_s), 0.0),
            joules=max(_LEAST_J, predicted_s * self.watts),
            elsewhere_j=first.elsewhere_j,
        )

    def _pump(self) -> None:
        while self._waiting and len(self._calls) < self.max_calls_in_flight:
            if jobs := self._take():
                # A context of its own: Ray cancels the calls made in the context of a request that goes away, and
                # this call also belongs to other requests.
                call = asyncio.get_running_loop().create_task(self._carry(jobs), context=Context())
                self._calls.add(call)
                call.add_done_callback(self._call_ended)

    def _take(self) -> list[_Job]:
        """Whole jobs, tenants in turn, up to the size of a call; those cancelled meanwhile fall out. Of requests that
        do not fit any more nobody is overtaken."""
        jobs: list[_Job] = []
        num_samples = 0
        while self._waiting:
            job = self._waiting.first()
            if job.done.done():
                self._waiting.remove(job)
                job.bill([])
                continue
            num_samples += len(job.samples)
            if jobs and num_samples > MAX_SAMPLES_PER_CALL:
                break
            self._waiting.take(1)
            jobs.append(job)
        return jobs

    def _call_ended(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        self._pump()
        if not self._calls:
            self._waiting.rest()

    async def _carry(self, jobs: list[_Job]) -> None:
        """Nobody is left waiting, whatever becomes of the call: also when the loop is being taken down."""
        try:
            await self._call(jobs, 1)
        finally:
            _fail(jobs, lambda: ReplicaLost("the call was given up before an answer came; retry"))

    async def _call(self, jobs: list[_Job], attempt: int) -> None:
        jobs = [job for job in jobs if not job.done.done()]
        if not jobs:
            return
        try:
            self._deliver(jobs, await self._attempt(jobs))
        except asyncio.CancelledError as error:
            if is_cancelled_itself():
                raise
            await self._call_failed(jobs, attempt, error)
        except Exception as error:
            await self._call_failed(jobs, attempt, error)

    async def _call_failed(self, jobs: list[_Job], attempt: int, error: BaseException) -> None:
        jobs = [job for job in jobs if not job.done.done()]
        if not jobs:
            return
        # Nobody here cancelled a call that still has listeners: whatever ran it went away.
        if not isinstance(error, asyncio.CancelledError) and not self.is_replica_lost(error):
            _log.error("replica call failed", attempt=attempt, exc_info=error)
            _fail(jobs, lambda: error)
            return
        _log.warning("replica lost", attempt=attempt, num_jobs=len(jobs), error=type(error).__name__)
        if attempt == MAX_ATTEMPTS:
            _fail(jobs, _lost)
            return
        if not self.retries.spend(self.clock(), len(jobs)):
            _fail(jobs, retries_spent)
            return
        self.tell(CallRetried(self.model))
        await asyncio.sleep(_BACKOFF_S * attempt)
        groups = [jobs] if attempt < _SHARED_ATTEMPTS else [[job] for job in jobs]
        await asyncio.gather(*(self._call(group, attempt + 1) for group in groups))

    async def _attempt(self, jobs: list[_Job]) -> list[SampleOutcome]:
        now_s = self.clock()
        samples = [
            sample._replace(remaining_s=sample.remaining_s - (now_s - job.sent_by_s))
            for job in jobs
            for sample in job.samples
        ]
        self.tell(SamplesSent(self.model, len(samples)))
        call_id = f"{self._name}-{next(self._numbers)}"
        pending = self.send(call_id, samples, sum(job.predicted_s for job in jobs))
        self._open[call_id] = _Call(jobs, pending)
        self._watch(call_id, jobs)
        try:
            outcomes: list[SampleOutcome] = await pending  # type: ignore[misc]
        finally:
            del self._open[call_id]
        if len(outcomes) != len(samples):
            raise RuntimeError(f"replica gave {len(outcomes)} outcomes for {len(samples)} samples")
        return outcomes

    def _watch(self, call_id: str, jobs: list[_Job]) -> None:
        """Take the samples of whoever goes away out of the call."""
        start = 0
        for job in jobs:
            places = list(range(start, start + len(job.samples)))
            start += len(job.samples)
            job.done.add_done_callback(partial(self._ended, call_id, places))

    def _ended(self, call_id: str, places: list[int], done: asyncio.Future[list[SampleOutcome]]) -> None:
        if done.cancelled() and call_id in self._open:
            self._left.setdefault(call_id, []).extend(places)
            if self._teller is None or self._teller.done():
                self._teller = asyncio.get_running_loop().create_task(self._tell(), context=Context())

    async def _tell(self) -> None:
        """One message at a time, for all that went away since the last: it goes to every replica."""
        while self._left:
            left, self._left = self._left, {}
            try:
                async with asyncio.timeout(_LEAVE_TIMEOUT_S):
                    found = await self.leave(left)
            except Exception as error:  # their deadlines end the samples
                _log.warning("replicas were not told of callers that left", error=type(error).__name__)
                continue
            for call_id in left.keys() - set(found):
                call = self._open.get(call_id)
                if call is not None and all(job.done.cancelled() for job in call.jobs):
                    call.pending.cancel()  # no replica has begun it

    def _deliver(self, jobs: list[_Job], outcomes: list[SampleOutcome]) -> None:
        start = 0
        for job in jobs:
            end = start + len(job.samples)
            job.bill(outcomes[start:end])
            taken_j = sum(outcome.compute_s for outcome in outcomes[start:end]) * self.watts
            self._waiting.correct(job.tenant, taken_j - job.joules)
            if not job.done.done():
                job.done.set_result(outcomes[start:end])
            start = end


def _fail(jobs: list[_Job], make_error: Callable[[], BaseException]) -> None:
    for job in jobs:
        job.bill([])
        if not job.done.done():
            job.done.set_exception(make_error())


def _lost() -> ReplicaLost:
    return ReplicaLost(f"{MAX_ATTEMPTS} replicas died while they had this request; it is not sent again")
