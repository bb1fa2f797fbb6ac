"""How jobs leave a worker: handed in, failed, cancelled, or given back for another attempt.

Whoever lost its lease ends nothing. A store of files that is full or away is waited for, under the lease, with
everything that was made.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import structlog

from schedulers.admission import Cost
from serving.errors import Cancelled, EngineFailed, ServingError, StoreFull, StoreUnavailable
from serving.replica.job.checkpoints import MAX_STORE_RETRY_S, Saving
from serving.replica.job.held import Bench, HeldJob, known_error
from serving.stores.jobs.base import JobError
from serving.telemetry import tracing
from serving.telemetry.events import EnergySpent, JobCompleted, JobFailed, WorkPriced

T = TypeVar("T")
_log = structlog.get_logger(__name__)
_ENGINE_TRIES = 2
"""A request that fails in the engine may have met a sick replica once; twice, it is the request."""


@dataclass(slots=True)
class Ending:
    """One per worker. ``renew``: bring the record up to date."""

    bench: Bench
    saving: Saving
    renew: Callable[[HeldJob], Awaitable[bool]]

    async def hand_in(self, held: HeldJob) -> None:
        """Encode, store, and say so in the index: whoever lost its lease stores nothing that is found."""
        bench, outputs, started_s, held.stage = self.bench, held.outputs, self.bench.clock(), "encode"
        assert outputs is not None
        try:
            files = await bench.files.encode(held.job, outputs)
            held.encode_s = bench.clock() - started_s
            held.outputs, held.stage = None, "store"
            artefacts = await self.insist(held, lambda: bench.files.store(held.job, held.lease, files))
        except Exception as error:
            await self.end_unmade(held, error)
            return
        await self.renew(held)  # the record shows the last step, too
        report, ttl_s = held.report(bench.spent(held), bench.config.watts), bench.config.ttl_s
        is_ours = await self._persist(lambda: bench.index.complete(held.lease, artefacts, report, ttl_s))
        if is_ours:
            bench.tell(
                JobCompleted(
                    model=bench.model,
                    tenant=held.job.owner,
                    stages_s=held.stages_s,
                    sparsity=held.means.get("sparsity", 0.0),
                    degraded=tuple(held.job.report.get("degraded", ())),
                )
            )
            if held.job.attempts <= 1:  # what an earlier attempt took is not known here
                bench.tell(WorkPriced(bench.model, "job", held.job.predicted_s, held.compute_s))
            self._settle(held, bench.clock() - started_s)
            await self.saving.drop(held)
        elif is_ours is not None:  # else the index may have them, though it could not say so
            await bench.files.remove(artefacts)
        bench.forget(held)

    async def insist(self, held: HeldJob, work: Callable[[], Awaitable[T]]) -> T:
        """Have the store of files do something; try again while it cannot and the job is wanted.

        Raises: StoreUnavailable: the job is not wanted here any more, or the patience with the store is over; whatever
        else the work raises.
        """
        bench = self.bench
        until_s, wait_s = bench.clock() + bench.config.store_patience_s, 0.1
        try:
            return await work()
        except StoreUnavailable as error:
            _log.warning("waiting for the store of files", job=held.job.id, error=error.message)
        bench.num_waiting_for_store += 1
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(held.is_unwanted.wait(), wait_s)
                try:
                    return await work()
                except StoreUnavailable:
                    if held.is_unwanted.is_set() or bench.clock() >= until_s:
                        raise
                wait_s = min(2 * wait_s, MAX_STORE_RETRY_S)
        finally:
            bench.num_waiting_for_store -= 1

    async def end_unmade(self, held: HeldJob, error: Exception) -> None:
        """Neither made nor delivered: the engine or the request is to blame, or the store of files."""
        known = known_error(error)
        if not isinstance(known, StoreUnavailable):
            held.error = known
            await self.end_failed(held)
        elif isinstance(held.error, Cancelled):
            await self.end_cancelled(held)
        elif self.bench.is_draining:
            await self.give_back(held)
        elif held.job.attempts < self.bench.config.max_attempts:
            await self.saving.save_last(held)
            await self._requeue(held, counts_as_attempt=True)
        else:
            await self._fail(held, _store_error(known, self.bench.config.store_patience_s))

    async def end_failed(self, held: HeldJob) -> None:
        """Try again elsewhere, unless it is the request that is to blame."""
        error = held.error or EngineFailed("the model failed on this request")
        if not isinstance(error, EngineFailed) or held.job.attempts >= _ENGINE_TRIES:
            await self._fail(held, error)
        else:
            await self._requeue(held, counts_as_attempt=True)

    async def end_cancelled(self, held: HeldJob) -> None:
        """Its owner wants it to end, or the lease is lost."""
        if held.is_lost:
            self.bench.forget(held)
        else:
            await self._fail(held, Cancelled("the job was cancelled"))

    async def give_back(self, held: HeldJob) -> None:
        """For whoever goes on with it: this worker stops."""
        if held.is_lost:
            self.bench.forget(held)
            return
        await self.saving.save_last(held)
        await self._requeue(held, counts_as_attempt=False)

    async def _requeue(self, held: HeldJob, *, counts_as_attempt: bool) -> None:
        index, progress = self.bench.index, held.last_progress()
        await self._persist(lambda: index.requeue(held.lease, progress, counts_as_attempt=counts_as_attempt))
        self.bench.forget(held)

    async def _fail(self, held: HeldJob, error: ServingError) -> None:
        bench, failure = self.bench, JobError(code=error.code, message=error.message, param=error.param)
        report, ttl_s = held.report(bench.spent(held), bench.config.watts), bench.config.ttl_s
        if await self._persist(lambda: bench.index.fail(held.lease, failure, report, ttl_s)):
            bench.tell(JobFailed(bench.model, error.code))
            self._settle(held, 0.0)
            await self.saving.drop(held)
        bench.forget(held)

    def _settle(self, held: HeldJob, handed_in_s: float) -> None:
        """What attempts before this one took is not the tenant's fault: their replicas died."""
        job, bench = held.job, self.bench
        spent = bench.spent(held)
        charged = spent.charged(bench.config.watts)
        joules = charged.joules or 0.0
        run_s = max(0.0, bench.clock() - held.claimed_s - handed_in_s)
        tracing.record(job.traceparent, ("run", run_s), ("settle", handed_in_s), run=spent.attributes)
        bench.settle(job.owner, job.id, job.charged, Cost(joules, spent.seconds))
        point = job.operating_point
        bench.tell(EnergySpent(model=bench.model, tenant=job.owner, point=point, source=charged.source, joules=joules))

    async def _persist(self, write: Callable[[], Awaitable[bool]]) -> bool | None:
        """Until Redis has it or the lease is surely gone: what was made must not be lost to a short outage. None: it
        stayed away."""
        until_s = self.bench.clock() + max(30.0, 3 * self.bench.config.lease_s)
        while True:
            try:
                return await write()
            except StoreUnavailable:
                if self.bench.clock() >= until_s:
                    _log.error("the job index stayed away; the job will be done again")
                    return None
                await asyncio.sleep(0.2)


def _store_error(error: StoreUnavailable, patience_s: float) -> StoreUnavailable:
    """What the owner of the job is told."""
    what = "is full" if isinstance(error, StoreFull) else "cannot be written to"
    return type(error)(
        f"the store of files {what}, and stayed so for {patience_s:g} s with everything made and ready to be stored; "
        "send the request again once the operator has mended that"
    )
