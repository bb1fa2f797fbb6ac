"""The gateway's half of durable jobs, whatever they make: admission, and everything that clients may ask later.

plan (the task's) -> reserve quota -> index.create. From then on, the job belongs to the index and to whichever replica
claims it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import msgspec
import structlog

from schedulers.admission import Cost
from schedulers.plan import Load
from serving.delivery.job.base import JobModel, JobPlan, JobRequest, JobTask, JobUpdate
from serving.delivery.pipeline import Pipeline, served
from serving.domain import Budget
from serving.errors import IdempotencyKeyReused, InvalidRequest, QueueFull, ServingError, StoreUnavailable
from serving.stores.artefacts import ArtefactStore
from serving.stores.jobs.base import Artefact, JobPage, JobRecord, JobStatus, folder, input_key, preview_key
from serving.stores.jobs.redis_jobs import RedisJobs
from serving.stores.results import Reservation
from serving.telemetry import tracing
from serving.telemetry.events import JobAdmitted

T = TypeVar("T")
_log = structlog.get_logger(__name__)
_RETRY_S = 2.0
_SEED_BITS = 31
_FIRST_POLL_S, _POLL_SHARE = 0.02, 0.1
_MAX_PREVIEW_BYTES = 1 << 18
_DIGEST_CHARS = 16
_SAID_ELSEWHERE = {"model", "vireo"}


@dataclass(frozen=True, kw_only=True)
class JobServiceConfig:
    """``max_queued``: waiting jobs of all tenants. ``secret``: makes ids that follow from a key impossible to guess.
    ``poll_s``: how often a watched job is looked up, more often at first. ``patience_s``: how long a watcher puts up
    with an absent store.
    ``max_watchers``: streams and waiting calls of this gateway together; each of them keeps polling Redis.
    """

    max_queued: int
    secret: bytes
    poll_s: float = 0.25
    patience_s: float = 30.0
    max_watchers: int = 512


class Jobs:
    """Implements ``JobService`` for one task. Keeps no state of a job, so any gateway can answer for any job."""

    def __init__(
        self,
        task: JobTask,
        models: Mapping[str, JobModel],
        index: RedisJobs,
        files: ArtefactStore,
        pipeline: Pipeline,
        config: JobServiceConfig,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.job_models = models
        self._task = task
        self._index = index
        self._files = files
        self._pipeline = pipeline
        self._config = config
        self._making: set[asyncio.Task[JobRecord]] = set()
        self._clock = clock
        self._num_watchers = 0

    async def create(self, request: JobRequest[Any]) -> JobRecord:
        """See ``JobService``. Charges what it may take at most; whoever ends the job corrects the charge."""
        model = served(self.job_models, request.model, self._task.does_not)
        job_id = self._new_id(request)
        if request.idempotency_key and (earlier := await self._reached(self._index.get(request.tenant, job_id))):
            check_same(request, earlier.asked)
            return earlier
        deadline_s = self._pipeline.deadline_s(Budget(), None)
        async with self._pipeline.admitted(
            request.tenant, model.card.id, lambda: _RETRY_S, deadline_s=deadline_s, priority=request.budget.priority
        ):
            return await self._create(request, model, job_id)

    async def _create(self, request: JobRequest[Any], model: JobModel, job_id: str) -> JobRecord:
        if model.prepare is not None:
            with tracing.span("media"):
                request = await model.prepare(request)
        with tracing.span("plan"):
            plan = await self._planned(request, model, self._seed(request, job_id))
        self._pipeline.bending.planned(request.model, request.tenant, plan.predicted_s, plan.degradation)
        job, inputs = self._record(request, model, job_id, plan), _bytes_of(plan.request)
        reservation = await self._pipeline.results.reserve(job.owner, plan.most, model.overruns.factors)
        # Whoever leaves now leaves a job behind or none, and a charge that belongs to it.
        making = asyncio.ensure_future(self._make(request, job, inputs, reservation, reservation.cost or plan.most))
        self._making.add(making)
        making.add_done_callback(self._made)
        return await asyncio.shield(making)

    async def _make(
        self,
        request: JobRequest[Any],
        job: JobRecord,
        inputs: Mapping[str, bytes],
        reservation: Reservation,
        charged: Cost,
    ) -> JobRecord:
        """Queue it, and settle its reservation in any case."""
        try:
            elsewhere_j = self._pipeline.elsewhere_j(job.owner, job.model)
            job = replace(job, charged_j=charged.joules, charged_s=charged.seconds, elsewhere_j=elsewhere_j)
            job = replace(job, inputs=await self._kept(job.id, inputs))
            stored = await self._stored(request, job, charged)
            if stored.created_at_s == job.created_at_s:  # else another gateway was first, and has charged
                reservation.settle(charged.joules, charged.seconds)
                self._pipeline.served(job.owner, job.model, job.predicted_j)
        finally:
            reservation.settle(0.0, 0.0)
        if stored.created_at_s != job.created_at_s:
            check_same(request, stored.asked)
            return stored
        self._pipeline.tell(JobAdmitted(job.model, job.owner, job.operating_point, job.predicted_s))
        return stored

    async def _stored(self, request: JobRequest[Any], job: JobRecord, charged: Cost) -> JobRecord:
        """The job of that id. Raises: as ``_created``; StoreUnavailable: nobody knows whether there is one."""
        try:
            await self._created(job, is_own_id=not request.idempotency_key)
            if request.idempotency_key:
                return await self._reached(self._index.get(job.owner, job.id)) or job
        except StoreUnavailable:
            # Its charge is given back. If it is there all the same it costs nothing; it must not be paid for, either.
            self._pipeline.results.settle_job(job.owner, job.id, charged, charged)
            raise
        return job

    def _made(self, making: asyncio.Task[JobRecord]) -> None:
        self._making.discard(making)
        if not making.cancelled():
            making.exception()  # whoever asked may have left

    async def _kept(self, job_id: str, inputs: Mapping[str, bytes]) -> dict[str, Artefact]:
        keys = {name: input_key(job_id, name, data) for name, data in inputs.items()}
        return {name: await self._reached(self._files.put(keys[name], data)) for name, data in inputs.items()}

    async def _created(self, job: JobRecord, *, is_own_id: bool) -> None:
        """``is_own_id``: no other request has made a job of that id. Raises: as ``RedisJobs.create``."""
        try:
            await self._reached(self._index.create(job, max_queued=self._config.max_queued))
        except ServingError:
            if job.inputs and is_own_id:
                with suppress(StoreUnavailable):  # they are swept
                    await self._files.delete(folder(job.id))
            raise

    async def get(self, owner: str, job_id: str) -> JobRecord:
        """See ``JobService``."""
        return self._task.known(await self._reached(self._index.get(owner, job_id)), job_id)

    async def page(self, owner: str, *, after: str | None, limit: int, newest_first: bool) -> JobPage:
        """See ``JobService``."""
        page = await self._reached(
            self._index.list_jobs(owner, self._task.name, after=after, limit=limit, newest_first=newest_first)
        )
        if page is None:
            noun = self._task.noun
            raise InvalidRequest(f"after is {after}, which is no {noun} of yours; begin anew without it", param="after")
        return page

    async def cancel(self, owner: str, job_id: str) -> JobRecord:
        """See ``JobService``. A waiting job is charged the steps that an earlier attempt left in a checkpoint, so
        nothing if it was never begun. For a running job, its replica says what it took."""
        before = await self.get(owner, job_id)
        job = self._task.known(await self._reached(self._index.cancel(owner, job_id)), job_id)
        if before.status is JobStatus.QUEUED and job.status is JobStatus.FAILED:
            self._pipeline.results.settle_job(owner, job.id, job.charged, job.taken)
        return job

    async def delete(self, owner: str, job_id: str) -> JobRecord:
        """See ``JobService``."""
        job = await self.get(owner, job_id)
        if not job.status.is_final:
            job = await self.cancel(owner, job_id)
            if job.status is not JobStatus.COMPLETED:  # it may have been completed in between
                return job
        self._task.known(await self._reached(self._index.delete(owner, job_id)), job_id)
        try:
            await self._files.delete(folder(job_id))
        except StoreUnavailable:
            _log.warning("files of a deleted job stay until they are swept", job=job_id)
        return job

    async def read(self, artefact: Artefact, start: int, end: int) -> bytes:
        """See ``JobService``."""
        try:
            return await self._reached(self._files.read(artefact.key, start, end))
        except FileNotFoundError:
            noun = self._task.noun
            raise self._task.unknown(f"the file is gone: the {noun} was deleted, or has expired", param="id") from None

    async def watch(self, owner: str, job_id: str) -> AsyncGenerator[JobUpdate, None]:
        """See ``JobService``."""
        limit = self._config.max_watchers
        if self._num_watchers >= limit:
            raise QueueFull(
                f"{limit} callers watch jobs here, which is the limit; show the job, or retry in {_RETRY_S:g} s",
                retry_after_s=_RETRY_S,
            )
        self._num_watchers += 1
        try:
            async with aclosing(self._updates(owner, job_id)) as updates:
                async for update in updates:
                    yield update
        finally:
            self._num_watchers -= 1

    # -- parts -------------------------------------------------------------------------------------------------------

    async def _updates(self, owner: str, job_id: str) -> AsyncGenerator[JobUpdate, None]:
        job, shown, since_s = await self.get(owner, job_id), b"", self._clock()
        while True:
            update = JobUpdate(job=job, finish_at_s=await self._finish_at_s(job))
            if job.status is JobStatus.IN_PROGRESS:
                preview = await self._preview(job)
                if preview and preview != shown:
                    shown = preview
                    update = replace(update, preview=preview)
            yield update
            if job.status.is_final:
                return
            job = await self._next(job, since_s)

    async def _next(self, seen: JobRecord, since_s: float) -> JobRecord:
        """The job once it has changed. A store that is away for a moment does not end a stream. Who has waited for long
        does not mind waiting a little longer; a picture may be there in half a second."""
        away_since_s: float | None = None
        while True:
            waited_s = max(0.0, self._clock() - since_s)
            await asyncio.sleep(min(self._config.poll_s, _FIRST_POLL_S + _POLL_SHARE * waited_s))
            try:
                job = await self.get(seen.owner, seen.id)
            except StoreUnavailable:
                away_since_s = self._clock() if away_since_s is None else away_since_s
                if self._clock() - away_since_s >= self._config.patience_s:
                    raise
                continue
            away_since_s = None
            if job != seen:
                return job

    async def _preview(self, job: JobRecord) -> bytes:
        try:
            preview = await self._files.read(preview_key(job.id), 0, _MAX_PREVIEW_BYTES + 1)
        except (FileNotFoundError, ServingError):
            return b""
        return preview if len(preview) <= _MAX_PREVIEW_BYTES else b""

    async def _finish_at_s(self, job: JobRecord) -> float | None:
        now_s = self._clock()
        if job.status is JobStatus.IN_PROGRESS:
            return now_s + (job.predicted_s if job.remaining_s is None else job.remaining_s)
        if job.status is not JobStatus.QUEUED or (model := self.job_models.get(job.model)) is None:
            return None
        try:
            queue = await self._index.queue(job.model)
        except StoreUnavailable:
            return None
        turn_s = queue.turn_s(job.owner, 0.0)  # of all jobs of the owner that wait, this one included
        return now_s + max(job.predicted_s, turn_s / model.replicas)

    async def _planned(self, request: JobRequest[Any], model: JobModel, seed: int) -> JobPlan:
        """By the jobs that wait now and go before it; looked up only if it matters."""
        budget, bending = request.budget, self._pipeline.bending
        if budget.latency_ms is None and not bending.bends(request.model):
            return model.plan(request, seed, Load())
        queue = await self._reached(self._index.queue(request.model))
        queued_s = queue.total_s / model.replicas
        bend = bending.depth(request.model, request.tenant, budget.priority, queued_s)
        plan = model.plan(request, seed, Load(bend=bend))
        if budget.latency_ms is None or not queued_s:
            return plan
        turn_s = queue.turn_s(request.tenant, plan.predicted_s) / model.replicas
        return model.plan(request, seed, Load(queued_s=turn_s, bend=bend))

    def _record(self, request: JobRequest[Any], model: JobModel, job_id: str, plan: JobPlan) -> JobRecord:
        now_s, latency_ms = self._clock(), request.budget.latency_ms
        degraded = (*request.budget.degraded, *plan.degraded)
        report: dict[str, Any] = {"degraded": list(degraded)} if degraded else {}
        if plan.degradation is not None:
            report["degradation"] = msgspec.to_builtins(plan.degradation)
        return JobRecord(
            id=job_id,
            owner=request.tenant,
            task=self._task.name,
            model=request.model,
            checkpoint=model.card.checkpoint_sha256,
            payload=msgspec.json.encode(replace(plan.request, **dict.fromkeys(_bytes_of(plan.request), b""))),
            point=plan.point,
            seed=plan.seed,
            num_steps=plan.num_steps,
            output=plan.output,
            shown=plan.shown,
            asked=asked_by(request) if request.idempotency_key else {},
            traceparent=tracing.traceparent(),
            priority=request.budget.priority.value,
            operating_point=plan.name,
            created_at_s=now_s,
            deadline_at_s=None if latency_ms is None else now_s + latency_ms / 1e3,
            predicted_s=plan.predicted_s,
            predicted_j=plan.predicted_j,
            most_s=plan.most.seconds,
            held_bytes=plan.held_bytes,
            report=report,
        )

    def _new_id(self, request: JobRequest[Any]) -> str:
        """A random id, or one that follows from tenant and key, so that a request sent again is the same job."""
        noun = self._task.noun
        if not request.idempotency_key:
            return f"{noun}_{uuid.uuid4().hex}"
        text = f"{request.tenant}\0{request.idempotency_key}".encode()
        return f"{noun}_{hmac.new(self._config.secret, text, hashlib.sha256).hexdigest()[:32]}"

    def _seed(self, request: JobRequest[Any], job_id: str) -> int:
        if request.idempotency_key:
            return int(job_id[-8:], 16) >> (32 - _SEED_BITS)
        return secrets.randbits(_SEED_BITS)

    async def _reached(self, work: Awaitable[T]) -> T:
        """Await ``work``. Raises: StoreUnavailable, in words for the caller; the details are only logged."""
        try:
            return await work
        except StoreUnavailable as error:
            _log.warning("jobs are out of reach", error=error.message)
            raise StoreUnavailable(
                f"jobs cannot be reached now; retry in {_RETRY_S:g} s", retry_after_s=_RETRY_S
            ) from None


def _bytes_of(request: Any) -> dict[str, bytes]:
    """What is too long for a record, which is read whenever somebody looks at the job."""
    values = {part.name: getattr(request, part.name) for part in fields(request)}
    return {name: value for name, value in values.items() if isinstance(value, bytes) and value}


# -- what a request asks for, as digests of its fields: equal for requests that mean the same, however they are spelt --
# Everything that a request may say counts, including the budget. What only says how it came (id, surface) does not.


def asked_by(request: JobRequest[Any]) -> dict[str, str]:
    """Digests by field, of the fields that are set."""
    return {name: _digest(value) for name, value in _said(request) if value not in (None, "", {})}


def check_same(request: JobRequest[Any], earlier: Mapping[str, str]) -> None:
    """Compare a request with an earlier one of the same key.

    Raises: IdempotencyKeyReused: it asks for something else.
    """
    asked = asked_by(request)
    differ = sorted(name for name in asked.keys() | earlier.keys() if asked.get(name) != earlier.get(name))
    if differ:
        raise IdempotencyKeyReused(
            f"idempotency-key came before with another request; different: {', '.join(differ)}. Use a new key for each "
            "job",
            param="idempotency-key",
        )


def _said(request: JobRequest[Any]) -> Iterator[tuple[str, Any]]:
    yield "model", request.model
    yield from request.asked.model_dump(exclude=_SAID_ELSEWHERE, warnings=False).items()
    yield from ((f"vireo.{part.name}", getattr(request.budget, part.name)) for part in fields(request.budget))


def _digest(value: Any) -> str:
    plain = float(value) if isinstance(value, int) and value < 2**53 else value  # 4 and 4.0 mean the same
    return hashlib.sha256(msgspec.json.encode(plain)).hexdigest()[:_DIGEST_CHARS]
