"""The types that a task's codec and the delivery of durable jobs share. Free of torch, Redis and Ray.

A task whose requests become jobs provides a ``JobTask``, parses its bodies into ``JobRequest``, and turns each into a
``JobPlan``: what the family is given, and how. It gets back a ``JobRecord``, from which it makes its reply.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import msgspec
from pydantic import BaseModel

from models import registry
from models.contract import Family, Value, Variant
from schedulers.admission import Cost
from schedulers.overrun import Overruns
from schedulers.plan import Load
from serving.config import JobOptions, ResolvedModel
from serving.domain import Budget, Degradation, Report, Surface
from serving.errors import ClientError, ConfigError, ServingError
from serving.stores.jobs.base import Artefact, JobPage, JobRecord, JobStatus

Body = TypeVar("Body", bound=BaseModel)
_UNPROVEN = 2.0
"""It takes a whole job to learn more: with as much as for short requests, hardly any could be queued until then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobTask:
    """How clients speak of a task. ``noun``: one thing that it makes; ids begin with it. ``does_not``: what a model of
    another task does not do, for the error message. ``main``: the file that stands for the whole job."""

    name: str
    noun: str
    does_not: str
    main: str
    unknown: type[ClientError]
    not_ready: type[ClientError]
    failed: type[ClientError]

    def artefact(self, job: JobRecord, name: str) -> Artefact:
        """A file of the job. Raises: ``not_ready``, ``failed``, ``unknown``: there is no such file."""
        what = f"{self.noun} {job.id}"
        if job.status is JobStatus.FAILED:
            why = "unknown" if job.error is None else job.error.code
            raise self.failed(f"{what} has no content: it failed ({why}). Create it again", param="id")
        if job.status is not JobStatus.COMPLETED:
            raise self.not_ready(f"{what} is {job.status}, {job.progress} %; wait until it is completed", param="id")
        if (artefact := job.artefacts.get(name)) is None:
            raise self.unknown(f"{what} has no {name}", param="variant")
        return artefact

    def known(self, job: JobRecord | None, job_id: str) -> JobRecord:
        """Pass a job that was found. Raises: ``unknown``, in the same words for a missing job and another tenant's."""
        if job is None or job.task != self.name:
            raise self.unknown(f"no {self.noun} has the id {job_id}; it may have expired", param="id")
        return job


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest(Generic[Body]):
    """A whole request for a job, parsed and authenticated.

    ``asked``: the wire schema, with one spelling for each meaning; its model and budget are fields of this class.
    """

    request_id: str
    surface: Surface
    tenant: str
    model: str
    asked: Body
    budget: Budget = field(default_factory=Budget)
    idempotency_key: str = ""
    """Requests of one tenant with the same key are the same job, however often they are sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPlan:
    """What a job will be: see ``JobRecord`` for ``output`` and ``shown``.

    ``request``: what the family's ``open`` is given together with ``point`` and ``seed``, an instance of its io's
    ``request`` class; its bytes become files of the job. ``num_steps``: slices of its main phase. ``name``: of the
    operating point. ``predicted_s`` and ``predicted_j``: what it is predicted to take; ``most_s``: if it shares nothing
    with others, and no part of it ends early. ``held_bytes``: the most that it may hold in memory. ``degraded``: the
    parts of the budget that ruled out a better one, and ``load``; ``degradation``: what that gave up.
    """

    request: Any
    point: dict[str, Value]
    seed: int
    num_steps: int
    name: str
    predicted_s: float
    predicted_j: float
    most_s: float = 0.0
    held_bytes: int = 0
    degraded: tuple[str, ...] = ()
    degradation: Degradation | None = None
    output: dict[str, Value] = field(default_factory=dict)
    shown: dict[str, Any] = field(default_factory=dict)

    @property
    def most(self) -> Cost:
        """What it is predicted to take at most."""
        if not self.predicted_s < self.most_s:
            return Cost(self.predicted_j, self.predicted_s)
        watts = self.predicted_j / self.predicted_s if self.predicted_s else 0.0
        return Cost(watts * self.most_s, self.most_s)


@dataclass(frozen=True, kw_only=True)
class JobModel:
    """A served model. ``card``: what its task tells clients. ``plan``: (request, a seed for it, what it
    meets) -> JobPlan, which decides what the request leaves open; raises ClientError for what the model cannot do.
    ``prepare``: what is done with a request before, which may take a while: its picture is decoded, say. ``overruns``:
    learnt from what jobs took."""

    card: Any
    plan: Callable[[Any, int, Load], JobPlan]
    prepare: Callable[[Any], Awaitable[Any]] | None = None
    replicas: int = 1
    overruns: Overruns = field(default_factory=lambda: Overruns(_UNPROVEN))


@dataclass(frozen=True, slots=True, kw_only=True)
class JobUpdate:
    """A job as it is now, for those who watch it. The last update of a job is final."""

    job: JobRecord
    finish_at_s: float | None = None
    """Unix time at which it is expected to be done; None: unknown, or already over."""
    preview: bytes | None = None
    """JPEG of the result so far; None if there is none, or no new one."""


class JobService(Protocol):
    """Durable jobs of one task. Every method raises ``StoreUnavailable`` if the job index cannot be reached."""

    @property
    def job_models(self) -> Mapping[str, JobModel]:
        """The models of the task that are served here, by id."""
        ...

    async def create(self, request: JobRequest[Any]) -> JobRecord:
        """Queue a job; it is durable once this returns. Raises: ServingError: nothing was queued."""
        ...

    async def get(self, owner: str, job_id: str) -> JobRecord:
        """The job as it is now. Raises: the task's ``unknown``: not there, or another tenant's."""
        ...

    async def page(self, owner: str, *, after: str | None, limit: int, newest_first: bool) -> JobPage:
        """A page of the owner's jobs. Raises: InvalidRequest: ``after`` is not one of them."""
        ...

    async def cancel(self, owner: str, job_id: str) -> JobRecord:
        """End the job unless it is over; a running one ends at its next slice. Raises: ``unknown``."""
        ...

    async def delete(self, owner: str, job_id: str) -> JobRecord:
        """Cancel a job that is not over, and keep its record; remove one that is over, with its files.

        Raises: ``unknown``.
        """
        ...

    async def read(self, artefact: Artefact, start: int, end: int) -> bytes:
        """Bytes from ``start`` up to but not including ``end``. Raises: ``unknown``: the file is gone."""
        ...

    def watch(self, owner: str, job_id: str) -> AsyncGenerator[JobUpdate, None]:
        """The job now, again whenever it changes, and a last time when it is over. Closing it leaves the job alone.

        Raises: ``unknown``: before the first update, or when the job is deleted. QueueFull: too many callers watch.
        """
        ...


def found_variant(model: ResolvedModel[JobOptions]) -> tuple[Family, Variant]:
    """A served model, as its family finds it in its folder if it looks. Raises: ConfigError: no weights."""
    family, variant = registry.family_for(model.family, model.variant), model.variant
    if model.options.engine == "fake" or "found" not in family.parts:
        return family, variant
    try:
        found = family.part("found")(variant)
    except ValueError as error:
        raise ConfigError(
            f"{error}: set its checkpoint_dir (--model {model.id}=FOLDER), or leave it out of models"
        ) from None
    return registry.family_for(model.family, found), found


async def waited_for(service: JobService, job: JobRecord) -> AsyncGenerator[JobUpdate, None]:
    """The job until it is completed. If its caller leaves, it is cancelled. Raises: what it failed with."""
    try:
        async with aclosing(service.watch(job.owner, job.id)) as updates:
            async for update in updates:
                job = update.job
                yield update
    except BaseException:  # GeneratorExit and cancellation among them: the caller is gone
        await cancel_for_good(service, job)
        raise
    if job.status is JobStatus.FAILED:
        raise job.failure


async def cancel_for_good(service: JobService, job: JobRecord) -> None:
    """Cancel a job that nobody is waiting for, even while this task is being cancelled."""

    async def cancel() -> None:
        with suppress(ServingError):
            await service.cancel(job.owner, job.id)

    await asyncio.shield(asyncio.ensure_future(cancel()))


def lowered(report: Mapping[str, Any]) -> Degradation | None:
    """What the report of a job says of a point below the best."""
    said = report.get("degradation")
    return None if said is None else msgspec.convert(said, Degradation)


def report_of(job: JobRecord) -> Report:
    """The report that every surface gives for a job that is over."""
    report = job.report
    return Report(
        operating_point=job.operating_point,
        energy_j=report.get("energy_j"),
        energy_source=report.get("energy_source", "estimate"),
        queue_ms=report.get("queue_ms", 0.0),
        compute_ms=report.get("compute_ms", 0.0),
        cache=report.get("cache", "off"),
        degraded=tuple(report.get("degraded", ())),
        degradation=lowered(report),
        guard=report.get("guard", {}),
    )
