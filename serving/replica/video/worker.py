"""The replica's half of durable jobs: claims them, has them denoised step by step, and hands in what came of it.

    claim loop   JobIndex.claim -> engine.admit -> JobArrived
    drive        VideoScheduler.handle(now, events) -> RunStep, Decode, Finish, ... -> engine -> events
    renew loop   Progress to the index, four times a second; it answers whether the lease is held, lost or cancelled

All of it runs on one event loop; the engine has threads of its own. A job whose replica dies is claimed by another once
its lease expires, and goes on from the last checkpoint. A store of clips that is full or away is waited for, under the
lease, with everything that was made; meanwhile nothing more is claimed.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import structlog

from schedulers.admission import Cost
from schedulers.types import Drain, Priority
from schedulers.video import VideoScheduler
from schedulers.video_types import (
    Decode,
    Decoded,
    Fail,
    Finish,
    GiveBack,
    JobArrived,
    JobCancelled,
    Preempted,
    Release,
    RunStep,
    StepFinished,
    StepResult,
    VideoDecision,
    VideoEvent,
)
from serving.errors import Cancelled, EngineFailed, ServingError, StoreFull, StoreUnavailable
from serving.replica.video.base import Admitted, Frames, StepDone, VideoEngine
from serving.replica.video.checkpoints import Checkpoints
from serving.replica.video.delivery import Delivery
from serving.stores.jobs.base import Claim, JobIndex, Lease, LeaseState, Progress
from serving.tasks.videos.domain import JobError, VideoJob
from serving.telemetry.events import (
    JobClaimed,
    JobCompleted,
    JobFailed,
    JobPreempted,
    JobsStepped,
    LeaseLost,
    Sink,
    ignore,
)

T = TypeVar("T")
_log = structlog.get_logger(__name__)
_MAX_STORE_RETRY_S = 5.0
_RENEW_S = 0.25
"""Also how soon a worker hears of a cancellation."""
Settle: TypeAlias = Callable[[str, str, Cost, Cost], None]
"""Tenant, job, what it was charged, what it took: ``serving.stores.results.ResultStore.settle_job``."""
_ENGINE_TRIES = 2
"""A request that fails in the engine may have met a sick replica once; twice, it is the request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """How a worker holds its jobs.

    ``lease_s``: how long a job of a dead replica stays with it. ``poll_s``: how often an
    idle worker looks for work. ``checkpoint_every``: steps between two checkpoints of latents; they are further apart
    where one would be written for more than ``checkpoint_share`` of the time. ``store_patience_s``: how long a store
    that is full or away is waited for; then the attempt is over, and the job with its ``max_attempts``-th. ``ttl_s``:
    how long finished clips are kept.
    """

    lease_s: float = 6.0
    poll_s: float = 0.2
    checkpoint_every: int = 5
    checkpoint_share: float = 0.5
    store_patience_s: float = 900.0
    max_attempts: int = 3
    preview_every_s: float = 1.0
    ttl_s: float = 24 * 3600.0
    watts: float = 6.0

    def __post_init__(self) -> None:
        positive = (self.lease_s, self.poll_s, self.checkpoint_every, self.checkpoint_share, self.ttl_s, self.watts)
        if min(positive) <= 0 or self.store_patience_s < 0:
            raise ValueError(f"every number of {self} must be positive")


@dataclass(slots=True)
class HeldJob:
    """A claimed job and what this attempt has spent on it."""

    job: VideoJob
    lease: Lease
    admitted: Admitted | None = None
    step: int = 0
    stage: str = "text"
    text_s: float = 0.0
    denoise_s: float = 0.0
    decode_s: float = 0.0
    encode_s: float = 0.0
    search_s: float = 0.0
    sparsity_sum: float = 0.0
    peak_bytes: int = 0
    steps_run: int = 0
    preemptions: int = 0
    checkpoint_step: int = 0
    checkpoint_at_s: float = -math.inf
    preview_at_s: float = 0.0
    checkpointing: asyncio.Task[None] | None = None
    frames: Frames | None = None
    error: ServingError | None = None
    is_lost: bool = False
    is_unwanted: asyncio.Event = field(default_factory=asyncio.Event)
    """Lost, cancelled, or its worker stops: whoever waits for something need not."""
    renewing: asyncio.Lock = field(default_factory=asyncio.Lock)
    queue_s: float = 0.0

    @property
    def compute_s(self) -> float:
        """Engine seconds of this attempt."""
        return self.text_s + self.denoise_s + self.decode_s

    @property
    def stages_s(self) -> dict[str, float]:
        """Seconds of each stage; ``search`` is part of ``denoise``."""
        return {
            "text": self.text_s,
            "denoise": self.denoise_s,
            "decode": self.decode_s,
            "encode": self.encode_s,
            "search": self.search_s,
        }

    @property
    def sparsity(self) -> float:
        """Mean share of attention that was skipped."""
        return self.sparsity_sum / self.steps_run if self.steps_run else 0.0


def _charge_as_predicted(tenant: str, job_id: str, charged: Cost, actual: Cost) -> None:
    """Leave quotas alone."""


@dataclass(slots=True)
class VideoWorker:
    """One per replica. ``start`` it on the loop that the engine was started on; ``stop`` drains it."""

    model: str
    name: str
    engine: VideoEngine
    scheduler: VideoScheduler
    index: JobIndex
    checkpoints: Checkpoints
    delivery: Delivery
    config: WorkerConfig = field(default_factory=WorkerConfig)
    tell: Sink = ignore
    settle: Settle = _charge_as_predicted
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time
    _held: dict[str, HeldJob] = field(default_factory=dict, init=False)
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set, init=False)
    _loops: list[asyncio.Task[None]] = field(default_factory=list, init=False)
    _is_draining: bool = field(default=False, init=False)
    _is_stopped: bool = field(default=False, init=False)
    _num_admitting: int = field(default=0, init=False)
    _num_waiting_for_store: int = field(default=0, init=False)
    _checkpoint_s: float = field(default=0.0, init=False)
    """What the last checkpoint took."""

    async def start(self) -> None:
        """Begin to claim."""
        self._loops = [asyncio.create_task(self._claim_loop()), asyncio.create_task(self._renew_loop())]

    async def stop(self) -> None:
        """Claim nothing more, give back what is running at its next step boundary, finish decodes."""
        self._is_draining = True
        for held in self._held.values():
            held.is_unwanted.set()
        self._feed(Drain())
        await self._end_tasks()
        self._is_stopped = True  # as well as cancelled: the Redis client may take a cancellation for itself
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await self._end_tasks()  # a claim that was under way gives its job back

    async def _end_tasks(self) -> None:
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    @property
    def num_held(self) -> int:
        """Jobs that are here."""
        return len(self._held)

    def queued_s(self) -> float:
        """Predicted seconds of the work that is here."""
        return self.scheduler.queued_s(self.clock())

    # -- claiming ----------------------------------------------------------------------------------------------------

    async def _claim_loop(self) -> None:
        while not self._is_draining:
            try:
                claim = await self._claim()
            except StoreUnavailable:
                claim = None
            except Exception:
                _log.exception("claiming failed")
                claim = None
            if claim is None:
                await asyncio.sleep(self.config.poll_s)
            else:  # let a replica that has nothing to do be first at the next one
                await asyncio.sleep(self.config.poll_s / 4)

    async def _claim(self) -> Claim | None:
        if self.scheduler.room() - self._num_admitting <= 0 or self._num_waiting_for_store:
            return None
        claim = await self.index.claim((self.model,), self.name, self.config.lease_s)
        if claim is None:
            return None
        held = HeldJob(claim.job, claim.lease)
        held.checkpoint_step = held.step = claim.job.checkpoint_step
        held.preemptions = claim.job.preemptions
        if self._is_draining:
            held.is_unwanted.set()
        if claim.job.id in self._held:  # from a lease that was lost, and not let go of yet
            await self.index.requeue(claim.lease, self._last_progress(held), counts_as_attempt=False)
            return None
        held.queue_s = max(0.0, self.wall_clock() - claim.job.created_at_s)
        self._held[claim.job.id] = held
        self._num_admitting += 1
        self.tell(JobClaimed(self.model, held.queue_s, claim.job.attempts))
        self._spawn(self._admit(held))
        return claim

    async def _admit(self, held: HeldJob) -> None:
        """Text encoding and a look at the checkpoint; then the scheduler has it."""
        job = held.job
        try:
            snapshot = await self._insist(held, lambda: self.checkpoints.load(job))
            held.admitted = await self.engine.admit(job.id, job.settings, snapshot)
        except Exception as error:
            await self._end_unmade(held, error)
            return
        finally:
            self._num_admitting -= 1
        held.checkpoint_step = held.admitted.step
        held.step, held.text_s, held.stage = held.admitted.step, held.admitted.text_s, "denoise"
        held.peak_bytes = held.admitted.held_bytes
        if held.is_lost or self._is_draining:
            await self._give_back(held)
            return
        self._feed(self._arrival(held))

    def _arrival(self, held: HeldJob) -> JobArrived:
        job, settings = held.job, held.job.settings
        left = settings.num_steps - held.step
        deadline_s = math.inf
        if job.deadline_at_s is not None:
            deadline_s = self.clock() + job.deadline_at_s - self.wall_clock()
        assert held.admitted is not None
        return JobArrived(
            job_id=job.id,
            steps_left=left,
            seconds_per_step=job.predicted_s / max(1, settings.num_steps),
            # One per 4x16x16 pixels, as in every checkpoint here; the scheduler compares jobs by it.
            tokens=max(1, settings.num_frames * settings.width * settings.height // (4 * 16 * 16)),
            held_bytes=self.engine.predicted_bytes(settings),
            phase=self.engine.phase(job.id),
            priority=Priority[job.priority.upper()],
            deadline_s=deadline_s,
        )

    # -- driving the scheduler ---------------------------------------------------------------------------------------

    def _feed(self, *events: VideoEvent) -> None:
        for decision in self.scheduler.handle(self.clock(), *events):
            self._carry_out(decision)

    def _carry_out(self, decision: VideoDecision) -> None:
        match decision:
            case RunStep():
                self._spawn(self._run_step(decision))
            case Decode(job_id=job_id):
                self._spawn(self._decode(self._held[job_id]))
            case Preempted(job_id=job_id):
                self._held[job_id].preemptions += 1
                self._consider_checkpoint(self._held[job_id], every=1)  # it may wait for long
                self.tell(JobPreempted(self.model))
            case Finish(job_id=job_id):
                self._spawn(self._hand_in(self._held[job_id]))
            case Fail(job_id=job_id):
                self._spawn(self._end_failed(self._held[job_id]))
            case Release(job_id=job_id):
                self._spawn(self._end_cancelled(self._held[job_id]))
            case GiveBack(job_id=job_id):
                self._spawn(self._give_back(self._held[job_id]))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Every piece of work is kept, and none may die unheard."""
        task = asyncio.get_running_loop().create_task(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: work.close())  # of one that was cancelled before it began
        return task

    async def _guarded(self, work: Awaitable[None]) -> None:
        try:
            await work
        except Exception:
            _log.exception("work on a job failed; its lease will expire")

    async def _run_step(self, batch: RunStep) -> None:
        started_s = self.clock()
        try:
            outcomes = await self.engine.run_step(batch.job_ids)
            if len(outcomes) != len(batch.job_ids):
                raise RuntimeError(f"engine gave {len(outcomes)} outcomes for {len(batch.job_ids)} jobs")
        except Exception as error:
            known = self._known(error)
            outcomes = [known for _ in batch.job_ids]
        elapsed_s = self.clock() - started_s
        results = tuple(self._account(job_id, outcome) for job_id, outcome in zip(batch.job_ids, outcomes, strict=True))
        self.tell(JobsStepped(self.model, len(batch.job_ids), elapsed_s))
        self._feed(StepFinished(batch_id=batch.batch_id, results=results, elapsed_s=elapsed_s))

    def _account(self, job_id: str, outcome: StepDone | ServingError) -> StepResult:
        held = self._held[job_id]
        if isinstance(outcome, ServingError):
            held.error = outcome
            return StepResult(job_id=job_id, phase=None, failed=True)
        held.step = outcome.step
        held.steps_run += 1
        held.denoise_s += outcome.compute_s
        held.search_s += outcome.search_s
        held.sparsity_sum += outcome.sparsity
        held.peak_bytes = max(held.peak_bytes, outcome.held_bytes)
        self._consider_preview(held)
        self._consider_checkpoint(held)
        return StepResult(job_id=job_id, phase=self.engine.phase(job_id))

    async def _decode(self, held: HeldJob) -> None:
        started_s, held.stage = self.clock(), "decode"
        try:
            held.frames = await self.engine.decode(held.job.id)
        except Exception as error:
            held.error = self._known(error)
        held.decode_s = self.clock() - started_s
        self._feed(Decoded(job_id=held.job.id, elapsed_s=held.decode_s, failed=held.error is not None))

    # -- checkpoints and previews ------------------------------------------------------------------------------------

    def _consider_checkpoint(self, held: HeldJob, every: int | None = None) -> None:
        """Begin one if so many steps were done since the last, and the store is quick enough to take one by now."""
        is_due = held.step - held.checkpoint_step >= (every or self.config.checkpoint_every)
        is_time = self.clock() - held.checkpoint_at_s >= self._checkpoint_s / self.config.checkpoint_share
        is_free = held.checkpointing is None or held.checkpointing.done()
        if is_due and is_time and is_free:
            held.checkpointing = self._spawn(self._checkpoint(held))

    async def _checkpoint(self, held: HeldJob) -> None:
        """The snapshot is taken by the engine between steps; writing it goes on beside them."""
        started_s = held.checkpoint_at_s = self.clock()
        try:
            snapshot = await self.engine.snapshot(held.job.id)
            held.checkpoint_step = await self.checkpoints.save(held.job, held.lease, snapshot)
            await self.checkpoints.prune(held.job)
        except Exception as error:  # a missing checkpoint costs repeated work, later, perhaps
            held.checkpoint_at_s = self.clock() + _MAX_STORE_RETRY_S
            _log.warning("no checkpoint", job=held.job.id, error=type(error).__name__)
        self._checkpoint_s = self.clock() - started_s
        if held.job.id not in self._held:
            self.checkpoints.forget(held.job.id)

    async def _end_checkpoints(self, held: HeldJob) -> None:
        """One that is just being written is waited for."""
        if held.checkpointing is not None:
            await asyncio.wait([held.checkpointing])

    async def _drop_checkpoints(self, held: HeldJob) -> None:
        """The job is over. Its state need not wait for a checkpoint that is being written."""
        self.engine.release(held.job.id)
        await self._end_checkpoints(held)
        await self.checkpoints.drop(held.job)

    def _consider_preview(self, held: HeldJob) -> None:
        if self.clock() - held.preview_at_s >= self.config.preview_every_s:
            held.preview_at_s = self.clock()
            self._spawn(self._preview(held))

    async def _preview(self, held: HeldJob) -> None:
        with contextlib.suppress(ServingError, OSError, KeyError):
            await self.delivery.put_preview(held.job, await self.engine.preview(held.job.id))

    # -- leases ------------------------------------------------------------------------------------------------------

    async def _renew_loop(self) -> None:
        while not self._is_stopped:
            await asyncio.sleep(min(self.config.lease_s / 3, _RENEW_S))
            await asyncio.gather(*(self._renew(held) for held in list(self._held.values())))

    async def _renew(self, held: HeldJob) -> bool:
        """Returns whether the index has what this job has come to. One at a time: the record never goes back."""
        async with held.renewing:
            try:
                state = await self.index.renew(held.lease, self.config.lease_s, self._progress(held))
            except StoreUnavailable:
                return False  # it may come back before the lease expires; if not, the next answer is LOST
        if state is LeaseState.HELD or held.is_lost or held.job.id not in self._held:
            return state is LeaseState.HELD
        held.error = held.error or Cancelled("the job was cancelled")
        held.is_lost = state is LeaseState.LOST
        held.is_unwanted.set()
        if held.is_lost:
            self.tell(LeaseLost(self.model))
        if held.admitted is not None:
            self._feed(JobCancelled(job_id=held.job.id))
        return not held.is_lost

    def _progress(self, held: HeldJob) -> Progress:
        left_s = None if held.admitted is None else self.scheduler.remaining_s(held.job.id)
        return Progress(
            stage=held.stage,
            step=held.step,
            remaining_s=left_s,
            checkpoint_step=held.checkpoint_step,
            preemptions=held.preemptions,
        )

    # -- ends --------------------------------------------------------------------------------------------------------

    async def _hand_in(self, held: HeldJob) -> None:
        """Encode, store, and say so in the index: whoever lost its lease stores nothing that is found."""
        frames, started_s, held.stage = held.frames, self.clock(), "encode"
        assert frames is not None
        try:
            files = await self.delivery.encode(held.job, frames)
            held.encode_s = self.clock() - started_s
            held.frames, held.stage = None, "store"
            artefacts = await self._insist(held, lambda: self.delivery.store(held.job, held.lease, files))
        except Exception as error:
            await self._end_unmade(held, error)
            return
        await self._renew(held)  # the record shows the last step, too
        report = self.report(held)
        is_ours = await self._persist(lambda: self.index.complete(held.lease, artefacts, report, self.config.ttl_s))
        if is_ours:
            self._tell_completed(held)
            self._settle(held)
            await self._drop_checkpoints(held)
        elif is_ours is not None:  # else the index may have them, though it could not say so
            await self.delivery.remove(artefacts)
        self._forget(held)

    async def _insist(self, held: HeldJob, work: Callable[[], Awaitable[T]]) -> T:
        """Have the store of clips do something; try again while it cannot and the job is wanted.

        Raises: StoreUnavailable: the job is not wanted here any more, or the patience with the store is over; whatever
        else the work raises.
        """
        until_s, wait_s = self.clock() + self.config.store_patience_s, 0.1
        try:
            return await work()
        except StoreUnavailable as error:
            _log.warning("waiting for the store of clips", job=held.job.id, error=error.message)
        self._num_waiting_for_store += 1
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(held.is_unwanted.wait(), wait_s)
                try:
                    return await work()
                except StoreUnavailable:
                    if held.is_unwanted.is_set() or self.clock() >= until_s:
                        raise
                wait_s = min(2 * wait_s, _MAX_STORE_RETRY_S)
        finally:
            self._num_waiting_for_store -= 1

    async def _end_unmade(self, held: HeldJob, error: Exception) -> None:
        """Neither made nor delivered: the engine or the request is to blame, or the store of clips."""
        known = self._known(error)
        if not isinstance(known, StoreUnavailable):
            held.error = known
            await self._end_failed(held)
        elif isinstance(held.error, Cancelled):
            await self._end_cancelled(held)
        elif self._is_draining:
            await self._give_back(held)
        elif held.job.attempts < self.config.max_attempts:
            await self._checkpoint_last(held)
            await self._requeue(held)
        else:
            await self._fail(held, _store_error(known, self.config.store_patience_s))

    async def _end_failed(self, held: HeldJob) -> None:
        error = held.error or EngineFailed("the model failed on this request")
        if not isinstance(error, EngineFailed) or held.job.attempts >= _ENGINE_TRIES:
            await self._fail(held, error)
            return
        await self._requeue(held)

    async def _requeue(self, held: HeldJob) -> None:
        """For another attempt."""
        await self._persist(lambda: self.index.requeue(held.lease, self._last_progress(held), counts_as_attempt=True))
        self._forget(held)

    async def _end_cancelled(self, held: HeldJob) -> None:
        if held.is_lost:
            self._forget(held)
            return
        await self._fail(held, Cancelled("the job was cancelled"))

    async def _fail(self, held: HeldJob, error: ServingError) -> None:
        failure = JobError(code=error.code, message=error.message)
        report = self.report(held)
        if await self._persist(lambda: self.index.fail(held.lease, failure, report, self.config.ttl_s)):
            self.tell(JobFailed(self.model, error.code))
            self._settle(held)
            await self._drop_checkpoints(held)
        self._forget(held)

    def _settle(self, held: HeldJob) -> None:
        """What attempts before this one took is not the tenant's fault: their replicas died."""
        job, took_s = held.job, held.compute_s
        charged, actual = Cost(job.predicted_j, job.predicted_s), Cost(took_s * self.config.watts, took_s)
        self.settle(job.owner, job.id, charged, actual)

    def _tell_completed(self, held: HeldJob) -> None:
        self.tell(
            JobCompleted(
                model=self.model,
                tenant=held.job.owner,
                stages_s=held.stages_s,
                sparsity=held.sparsity,
                joules=held.compute_s * self.config.watts,
            )
        )

    async def _give_back(self, held: HeldJob) -> None:
        if not held.is_lost:
            await self._checkpoint_last(held)
            progress = self._last_progress(held)
            await self._persist(lambda: self.index.requeue(held.lease, progress, counts_as_attempt=False))
        self._forget(held)

    async def _checkpoint_last(self, held: HeldJob) -> None:
        """All that was done, for whoever goes on with it; not while another is on its way, which would end after it."""
        await self._end_checkpoints(held)
        if held.admitted is not None and held.step > held.checkpoint_step:
            await self._checkpoint(held)

    def _last_progress(self, held: HeldJob) -> Progress:
        return Progress(
            stage="queued",
            step=held.checkpoint_step,
            checkpoint_step=held.checkpoint_step,
            preemptions=held.preemptions,
        )

    async def _persist(self, write: Callable[[], Awaitable[bool]]) -> bool | None:
        """Until Redis has it or the lease is surely gone: what was made must not be lost to a short outage. None: it
        stayed away."""
        until_s = self.clock() + max(30.0, 3 * self.config.lease_s)
        while True:
            try:
                return await write()
            except StoreUnavailable:
                if self.clock() >= until_s:
                    _log.error("the job index stayed away; the job will be done again")
                    return None
                await asyncio.sleep(0.2)

    def _forget(self, held: HeldJob) -> None:
        self._held.pop(held.job.id, None)
        self.checkpoints.forget(held.job.id)
        self.engine.release(held.job.id)
        held.frames = None

    def report(self, held: HeldJob) -> dict[str, object]:
        """The ``vireo`` block, and seconds of each stage."""
        return {
            "operating_point": held.job.operating_point,
            "energy_j": held.compute_s * self.config.watts,
            "energy_source": "estimate",
            "queue_ms": 1e3 * held.queue_s,
            "compute_ms": 1e3 * held.compute_s,
            "stages_s": held.stages_s,
            "steps": held.steps_run,
            "sparsity": held.sparsity,
            "peak_bytes": held.peak_bytes,
            "resumed_at_step": held.admitted.step if held.admitted else 0,
        }

    def _known(self, error: Exception) -> ServingError:
        if isinstance(error, ServingError):
            return error
        _log.error("engine raised", exc_info=error)
        return EngineFailed("the model failed on this request")


def _store_error(error: StoreUnavailable, patience_s: float) -> StoreUnavailable:
    """What the owner of the job is told."""
    what = "is full" if isinstance(error, StoreFull) else "cannot be written to"
    return type(error)(
        f"the store of clips {what}, and stayed so for {patience_s:g} s with the clip ready to be stored; send the "
        "request again once the operator has mended that"
    )
