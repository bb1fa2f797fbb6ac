"""The replica's half of durable jobs: claims them, has them made step by step, and hands in what came of it.

    claim loop   RedisJobs.claim -> engine.admit -> UnitArrived
    drive        Kernel.handle(now, events) -> RunSlice, Finish, ... -> engine -> events
    renew loop   Progress to the index, four times a second; it answers whether the lease is held, lost or cancelled

All of it runs on one event loop; the engine has threads of its own. A job whose replica dies is claimed by another once
its lease expires, and goes on from the last checkpoint (``checkpoints``). How jobs leave again is in ``ending``.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import structlog

from schedulers.kernel import Kernel
from schedulers.policies.denoising import DECODE, DENOISE, DenoisingWork, Routed
from schedulers.types import (
    Decision,
    Drain,
    Event,
    Fail,
    Finish,
    GiveBack,
    Preempted,
    Priority,
    Release,
    RunSlice,
    SliceFinished,
    SliceResult,
    UnitArrived,
    UnitCancelled,
)
from serving.errors import Cancelled, DeadlineExceeded, EngineFailed, ServingError, StoreUnavailable
from serving.replica.job.base import Admitted, JobInput, StepDone, StepOutcome, tokens_of
from serving.replica.job.checkpoints import Saving
from serving.replica.job.ending import Ending
from serving.replica.job.held import Bench, HeldJob, known_error
from serving.stores.jobs.base import Claim, JobRecord, LeaseState, Progress
from serving.telemetry import tracing
from serving.telemetry.events import JobClaimed, JobPreempted, JobsStepped, LeaseLost, WorkPriced

_log = structlog.get_logger(__name__)
_RENEW_S = 0.25
"""Also how soon a worker hears of a cancellation."""


@dataclass(slots=True)
class Worker:
    """One per replica. ``start`` it on the loop that the engine was started on; ``stop`` drains it.

    ``request``: the class that payloads of the model's jobs are decoded to.
    """

    bench: Bench
    scheduler: Kernel
    request: type[Any]
    saving: Saving = field(init=False)
    ending: Ending = field(init=False)
    _loops: list[asyncio.Task[None]] = field(default_factory=list, init=False)
    _is_stopped: bool = field(default=False, init=False)
    _num_admitting: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.saving = Saving(self.bench)
        self.ending = Ending(self.bench, self.saving, self._renew)

    async def start(self) -> None:
        """Begin to claim."""
        self._loops = [asyncio.create_task(self._claim_loop()), asyncio.create_task(self._renew_loop())]

    async def stop(self) -> None:
        """Claim nothing more, give back what is running at its next step boundary, finish decodes."""
        self.bench.is_draining = True
        for held in self.bench.held.values():
            held.is_unwanted.set()
        self._feed(Drain())
        await self.bench.end_tasks()
        self._is_stopped = True  # as well as cancelled: the Redis client may take a cancellation for itself
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await self.bench.end_tasks()  # a claim that was under way gives its job back

    @property
    def num_held(self) -> int:
        """Jobs that are here."""
        return len(self.bench.held)

    def queued_s(self) -> float:
        """Predicted seconds of the work that is here."""
        return self.scheduler.queued_s(self.bench.clock())

    # -- claiming ----------------------------------------------------------------------------------------------------

    async def _claim_loop(self) -> None:
        poll_s = self.bench.config.poll_s
        while not self.bench.is_draining:
            try:
                claim = await self._claim()
            except StoreUnavailable:
                claim = None
            except Exception:
                _log.exception("claiming failed")
                claim = None
            # After a claim, let a replica that has nothing to do be first at the next one.
            await asyncio.sleep(poll_s if claim is None else poll_s / 4)

    async def _claim(self) -> Claim | None:
        bench = self.bench
        if self.scheduler.room() - self._num_admitting <= 0 or bench.num_waiting_for_store:
            return None
        claim = await bench.index.claim(bench.model, bench.name, bench.config.lease_s, passing_over=self._have_enough())
        if claim is None:
            return None
        held = HeldJob(claim.job, claim.lease, claimed_s=bench.clock())
        held.checkpoint_step = held.step = claim.job.checkpoint_step
        held.preemptions = claim.job.preemptions
        if bench.is_draining:
            held.is_unwanted.set()
        if claim.job.id in bench.held:  # from a lease that was lost, and not let go of yet
            await bench.index.requeue(claim.lease, held.last_progress(), counts_as_attempt=False)
            return None
        held.queue_s = max(0.0, bench.wall_clock() - claim.job.created_at_s)
        tracing.record(claim.job.traceparent, ("queue", held.queue_s))
        bench.held[claim.job.id] = held
        self._num_admitting += 1
        bench.tell(JobClaimed(bench.model, held.queue_s, claim.job.attempts))
        bench.spawn(self._admit(held))
        return claim

    def _have_enough(self) -> list[str]:
        """Owners that hold as many places as one may, so that others need not wait for the end of a job: half of them,
        or what fills a step and a decode if that is more."""
        limits, held = self.scheduler.policy.limits, Counter(held.job.owner for held in self.bench.held.values())
        most = max(limits.max_running, limits.max_units // 2)
        return [owner for owner, count in held.items() if count >= most]

    async def _admit(self, held: HeldJob) -> None:
        """A look at the checkpoint, and the conditioning; then the scheduler has it."""
        job, bench = held.job, self.bench
        try:
            self._check_in_time(job)
            inputs = await self.ending.insist(held, lambda: bench.files.inputs(job))
            held.wanted = self._input_of(job, inputs)
            snapshot = await self.ending.insist(held, lambda: bench.checkpoints.load(job))
            held.admitted = await self._admitted(held, held.wanted, snapshot)
        except Exception as error:
            await self.ending.end_unmade(held, error)
            return
        finally:
            self._num_admitting -= 1
        held.checkpoint_step = held.step = held.admitted.step
        held.text_s, held.stage = held.admitted.text_s, "denoise"
        held.peak_bytes = held.admitted.held_bytes
        if held.is_lost or bench.is_draining:
            await self.ending.give_back(held)
            return
        self._feed(self._arrival(held, held.wanted))

    def _check_in_time(self, job: JobRecord) -> None:
        """What has begun is made all the same. Raises: DeadlineExceeded: it has not, and is late already."""
        if job.deadline_at_s is None or job.checkpoint_step or self.bench.wall_clock() < job.deadline_at_s:
            return
        raise DeadlineExceeded("the deadline passed while the job waited; allow more latency_ms, or retry later")

    async def _admitted(self, held: HeldJob, wanted: JobInput, snapshot: bytes | None) -> Admitted:
        metered, text_s = self.bench.slice(), 0.0
        try:
            admitted = await self.bench.engine.admit(held.job.id, wanted, snapshot)
            text_s = admitted.text_s
        finally:
            metered.over(held, text_s)
        return admitted

    def _input_of(self, job: JobRecord, inputs: Mapping[str, bytes]) -> JobInput:
        """Raises: EngineFailed: the payload was written for another version of the model."""
        try:
            request = msgspec.json.decode(job.payload, type=self.request)
        except msgspec.MsgspecError:
            raise EngineFailed("the request was kept in a form that this model does not read; send it again") from None
        return JobInput(
            request=replace(request, **inputs),
            point=job.point,
            seed=job.seed,
            num_steps=job.num_steps,
            tenant=job.owner,
            priority=Priority[job.priority.upper()],
        )

    def _arrival(self, held: HeldJob, wanted: JobInput) -> UnitArrived:
        job, bench, work = held.job, self.bench, self.bench.engine.work(wanted)
        deadline_s = math.inf
        if job.deadline_at_s is not None:
            deadline_s = bench.clock() + job.deadline_at_s - bench.wall_clock()
        steps = DenoisingWork(
            steps_left=job.num_steps - held.step,
            seconds_per_step=job.predicted_s / max(1, job.num_steps),
            tokens=tokens_of(work, wanted),
        )
        return UnitArrived(
            unit_id=job.id,
            work=steps,
            held_bytes=work.bytes_held,
            batch_key=bench.engine.phase(job.id),
            tenant=job.owner,
            priority=wanted.priority,
            deadline_s=deadline_s,
        )

    # -- driving the scheduler ---------------------------------------------------------------------------------------

    def _feed(self, *events: Event) -> None:
        for decision in self.scheduler.handle(self.bench.clock(), *events):
            self._carry_out(decision)

    def _carry_out(self, decision: Decision) -> None:
        held, spawn, ending = self.bench.held, self.bench.spawn, self.ending
        match decision:
            case RunSlice(stage=stage):
                spawn(self._decode(decision) if stage == DECODE else self._run_step(decision))
            case Preempted(unit_id=job_id):
                held[job_id].preemptions += 1
                self.saving.consider(held[job_id], every=1)  # it may wait for long
                self.bench.tell(JobPreempted(self.bench.model))
            case Finish(unit_id=job_id):
                spawn(ending.hand_in(held[job_id]))
            case Fail(unit_id=job_id):
                spawn(ending.end_failed(held[job_id]))
            case Release(unit_id=job_id):
                spawn(ending.end_cancelled(held[job_id]))
            case GiveBack(unit_id=job_id):
                spawn(ending.give_back(held[job_id]))

    async def _run_step(self, batch: RunSlice) -> None:
        bench, started_s, metered = self.bench, self.bench.clock(), self.bench.slice()
        try:
            outcomes = await bench.engine.run_step(batch.unit_ids)
            if len(outcomes) != len(batch.unit_ids):
                raise RuntimeError(f"engine gave {len(outcomes)} outcomes for {len(batch.unit_ids)} jobs")
            outcomes = self._shared(outcomes)
        except Exception as error:
            known = known_error(error)
            outcomes = [known for _ in batch.unit_ids]
        outcomes = metered.told(outcomes)
        elapsed_s = bench.clock() - started_s
        results = tuple(
            self._account(job_id, outcome) for job_id, outcome in zip(batch.unit_ids, outcomes, strict=True)
        )
        bench.tell(JobsStepped(bench.model, len(batch.unit_ids), elapsed_s))
        rows = [
            (bench.held[done.job_id].job.owner, 2 * (done.step - 1) >= bench.held[done.job_id].job.num_steps, done)
            for done in outcomes
            if isinstance(done, StepDone)
        ]
        self._feed(SliceFinished(slice_id=batch.slice_id, results=results, elapsed_s=elapsed_s))
        bench.tell(WorkPriced(bench.model, "step", batch.predicted_s, elapsed_s, bench.cost.correction(DENOISE)))
        bench.experts.add(rows)  # last: what counts must not hold up what works

    def _shared(self, outcomes: Sequence[StepOutcome]) -> list[StepOutcome]:
        """Time of a step that one tenant's tokens have made slow is that tenant's."""
        done = [one for one in outcomes if isinstance(one, StepDone) and one.loads is not None]
        rows = [(self.bench.held[one.job_id].job.owner, float(one.loads[0].sum())) for one in done]
        taken_s = sum(one.compute_s for one in done)
        parts = [one.compute_s / taken_s if taken_s > 0.0 else 0.0 for one in done]
        shares = self.bench.skew.shares(rows, parts, surcharge=1.0)
        paid = {one.job_id: replace(one, compute_s=taken_s * share) for one, share in zip(done, shares, strict=True)}
        return [paid.get(one.job_id, one) if isinstance(one, StepDone) else one for one in outcomes]

    def _account(self, job_id: str, outcome: StepDone | ServingError) -> SliceResult:
        held = self.bench.held[job_id]
        if isinstance(outcome, ServingError):
            held.error = outcome
            return SliceResult(unit_id=job_id, failed=True)
        held.add(outcome)
        self.saving.consider_preview(held)
        self.saving.consider(held)
        phase = self.bench.engine.phase(job_id)
        report = phase if outcome.loads is None else Routed(phase, outcome.loads.tolist())
        return SliceResult(unit_id=job_id, report=report)

    async def _decode(self, one: RunSlice) -> None:
        held = self.bench.held[one.unit_ids[0]]
        started_s, metered, held.stage = self.bench.clock(), self.bench.slice(), "decode"
        try:
            held.outputs = await self.bench.engine.decode(held.job.id)
        except Exception as error:
            held.error = known_error(error)
        held.decode_s = self.bench.clock() - started_s
        metered.over(held, held.decode_s)
        results = (SliceResult(unit_id=held.job.id, failed=held.error is not None),)
        self._feed(SliceFinished(slice_id=one.slice_id, results=results, elapsed_s=held.decode_s))

    # -- leases ------------------------------------------------------------------------------------------------------

    async def _renew_loop(self) -> None:
        while not self._is_stopped:
            await asyncio.sleep(min(self.bench.config.lease_s / 3, _RENEW_S))
            await asyncio.gather(*(self._renew(held) for held in list(self.bench.held.values())))

    async def _renew(self, held: HeldJob) -> bool:
        """Returns whether the index has what this job has come to. One at a time: the record never goes back."""
        bench = self.bench
        async with held.renewing:
            try:
                state = await bench.index.renew(held.lease, bench.config.lease_s, self._progress(held))
            except StoreUnavailable:
                return False  # it may come back before the lease expires; if not, the next answer is LOST
        if state is LeaseState.HELD or held.is_lost or held.job.id not in bench.held:
            return state is LeaseState.HELD
        held.error = held.error or Cancelled("the job was cancelled")
        held.is_lost = state is LeaseState.LOST
        held.is_unwanted.set()
        if held.is_lost:
            bench.tell(LeaseLost(bench.model))
        if held.admitted is not None:
            self._feed(UnitCancelled(unit_id=held.job.id))
            self.bench.engine.leave(held.job.id)
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
