"""Pictures that are made as durable jobs: when they are, what they are called, and ``/v1/images/jobs``.

Any call may become one. Those to a model of shape ``job`` always do: whoever waits for the pictures waits for a job.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from models.contract import Value, Work
from models.io import ImageRequest
from models.prompt_tokens import FIELDS as PROMPTS
from models.registry import family_for
from schedulers.plan import Load
from serving.bending import degradation_of
from serving.config import JobOptions, ResolvedModel
from serving.delivery.job.base import JobPlan, JobRequest, JobTask, JobUpdate, report_of, waited_for
from serving.delivery.job.http import JobHttp, check_key, error_of
from serving.domain import Budget, UnaryRequest
from serving.errors import ImageFailed, ImageNotReady, PromptTooLong, TooManyImages, UnknownImage
from serving.front.front import BaseCall
from serving.operating_points import Points, choose
from serving.refusals import refused, uncounted
from serving.stores.jobs.base import JobRecord, JobStatus
from serving.tasks.images.rules import ImagesAsked, ImagesMade, make_images, rows_of, size_of
from serving.tasks.images.schemas import GenerationBody, ImageJobAnswer
from serving.telemetry.events import OK

JOB_FROM_S: Final = 10.0
"""Predicted to take so long, a call becomes a job unless its caller wants to wait."""
MAX_JOB_IMAGES: Final = 10

IMAGES = JobTask(
    name="images",
    noun="image",
    does_not="makes no images",
    main="image",
    unknown=UnknownImage,
    not_ready=ImageNotReady,
    failed=ImageFailed,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagesJob(JobRequest[GenerationBody]):
    """A call that is a job. ``plan``: made where rows are planned."""

    plan: JobPlan


def plan_of(request: JobRequest[Any], _seed: int, _load: Load) -> JobPlan:
    """``JobModel.plan``."""
    assert isinstance(request, ImagesJob)
    return request.plan


@dataclass(frozen=True, kw_only=True)
class PicturePlanner:
    """Plans pictures of a model of shape ``job``, which declares its denoising steps as slices: ``JobModel.plan``."""

    model: ResolvedModel[JobOptions]
    points: Points
    check_prompts: Callable[[ImageRequest], None] = uncounted

    def __call__(self, job: JobRequest[Any], _seed: int, load: Load) -> JobPlan:
        """The plan that came with the job, or, where it must wait, another that leaves the time for that."""
        assert isinstance(job, ImagesJob)
        if not (load.queued_s or load.bend):
            return job.plan
        made = self.plan(job.plan.request, job.plan.seed, job.budget, load)
        degraded = tuple(dict.fromkeys((*made.degraded, *job.plan.degraded)))
        return replace(made, degraded=degraded, output=job.plan.output, shown=job.plan.shown)

    def plan(self, picture: ImageRequest, seed: int, budget: Budget, load: Load) -> JobPlan:
        """Raises: InvalidRequest, PromptTooLong: not what the model makes. BudgetInfeasible, DeadlineUnreachable."""
        family, model, work = (
            family_for(self.model.family, self.model.variant),
            self.model,
            partial(self.points.work, request=picture),
        )
        for name in PROMPTS:
            if (length := len(getattr(picture, name))) > (limit := model.variant.io.max_prompt_chars):
                raise PromptTooLong(f"{name} has {length} characters; {model.id} takes {limit}", param=name)
        with refused(model.variant.io):
            self.check_prompts(picture)
        latency_s = None if budget.latency_ms is None else budget.latency_ms / 1e3
        chosen = choose(model.id, self.points, budget, work, latency_s=latency_s, load=load)
        point = family.check_point(chosen.point.settings)
        with refused(model.variant.io):
            if family.allowed is not None:
                family.allowed.load()(model.variant, picture, point)
        assert family.work is not None, "a family of jobs counts its work"
        counted: Work = family.work.load()(model.variant, picture, point)
        return JobPlan(
            request=picture,
            point=point,
            seed=seed,
            num_steps=round(counted.units.get("slices", 1)),
            name=chosen.point.name,
            predicted_s=chosen.busy_s,
            predicted_j=chosen.energy_j,
            most_s=chosen.latency_s,
            held_bytes=counted.bytes_held,
            degraded=chosen.degraded,
            degradation=degradation_of(chosen),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Waited:
    """Pictures that their caller waits for, and the job that makes them."""

    job: JobRecord
    width: int
    height: int


async def begin(
    call: BaseCall, asked: ImagesAsked, body: GenerationBody | None = None, key: str = ""
) -> ImagesMade | Waited | JobRecord:
    """What a call asks for: pictures, at once or after a wait, or the job that makes them, if ``body`` asks for one or
    allows it and it is predicted to take long. ``key``: makes jobs of one tenant one. Raises: ServingError."""
    request, service = rows_of(call, asked), call.front.service
    background = False if body is None else None if body.vireo is None else body.vireo.background
    planner = job_model.plan if (job_model := service.image_jobs.job_models.get(request.model)) else None
    if not isinstance(planner, PicturePlanner):
        plan = None if background is False else await service.unary.plan_job(request, 0.0 if background else JOB_FROM_S)
        if plan is None:
            return await make_images(call, asked, request)
        return await _begin(call, asked, request, plan, body, key, is_degraded=not background)
    io = planner.model.variant.io
    width, height = size_of(asked.size, io)
    picture = ImageRequest(
        width=width,
        height=height,
        prompt=asked.prompt,
        negative_prompt=asked.negative_prompt,
        count=asked.count,
    )
    plan = planner.plan(picture, request.seeds[0] if request.seeds else 0, request.budget, Load())
    is_long = planner.points.is_calibrated and plan.predicted_s >= JOB_FROM_S
    if background or (background is None and is_long):
        return await _begin(call, asked, request, plan, body, key, is_degraded=not background)
    job = await _begin(call, asked, request, plan, body, key, is_degraded=False)
    return Waited(job=job, width=width, height=height)


async def progress(call: BaseCall, waited: Waited) -> AsyncGenerator[JobUpdate | ImagesMade, None]:
    """How far the pictures are, and last the pictures. Raises: ServingError."""
    service, job = call.front.service.image_jobs, waited.job
    async with aclosing(waited_for(service, job)) as updates:
        async for update in updates:
            job = update.job
            yield update
    artefacts = [IMAGES.artefact(job, name) for name in FILES[: job.shown["n"]]]
    files = [await service.read(each, 0, each.num_bytes) for each in artefacts]
    call.visit.outcome = OK
    yield ImagesMade(
        model=job.model,
        files=tuple(files),
        format=job.output["format"],  # type: ignore[arg-type]
        width=waited.width,
        height=waited.height,
        seeds=tuple(job.shown["seeds"]),
        report=report_of(job),
    )


async def answer(
    call: BaseCall, asked: ImagesAsked, body: GenerationBody | None = None, key: str = ""
) -> ImagesMade | JobRecord:
    """What ``begin`` gives, once there is something to give."""
    begun = await begin(call, asked, body, key)
    if not isinstance(begun, Waited):
        return begun
    async with aclosing(progress(call, begun)) as updates:
        async for update in updates:
            if isinstance(update, ImagesMade):
                return update
    raise AssertionError("the last of them are the pictures")


async def _begin(
    call: BaseCall,
    asked: ImagesAsked,
    request: UnaryRequest,
    plan: JobPlan,
    body: GenerationBody | None,
    key: str,
    *,
    is_degraded: bool,
) -> JobRecord:
    """Queue a job. Raises: ServingError."""
    if asked.count > MAX_JOB_IMAGES:
        raise TooManyImages(f"n is {asked.count}; a job makes at most {MAX_JOB_IMAGES} images", param="n")
    output: dict[str, Value] = {"format": asked.format}
    if asked.compression is not None:
        output["quality"] = asked.compression
    shown = {"prompt": asked.prompt, "seeds": list(request.seeds), "n": asked.count}
    plan = replace(
        plan,
        degraded=(*plan.degraded, "background") if is_degraded else plan.degraded,
        output=output,
        shown=shown,
    )
    job = ImagesJob(
        request_id=call.request_id,
        surface=call.surface,
        tenant=call.tenant,
        model=request.model,
        asked=await asyncio.to_thread(_alike, body or GenerationBody(), asked) if key else GenerationBody(),
        budget=request.budget,
        idempotency_key=check_key(key),
        plan=plan,
    )
    return await call.front.service.image_jobs.create(job)


def _alike(body: GenerationBody, asked: ImagesAsked) -> GenerationBody:
    """The body with one spelling for each meaning, whether it came as JSON or as a form; the picture as a digest."""
    said: dict[str, Any] = {
        "n": asked.count,
        "size": asked.size,
        "output_format": asked.format,
        "response_format": None,
        "negative_prompt": asked.negative_prompt or None,
    }
    if asked.image is not None:
        said |= {"image": hashlib.sha256(asked.image.encoded or b"").hexdigest(), "images": None}
    return body.model_copy(update=said)


def job_to_json(job: JobRecord, url: str, finish_at_s: float | None = None) -> ImageJobAnswer:
    """Return the job as clients see it."""
    names = FILES[: job.shown["n"]] if job.status is JobStatus.COMPLETED else ()
    return {
        "id": job.id,
        "object": "image",
        "model": job.model,
        "prompt": job.shown["prompt"],
        "seeds": job.shown["seeds"],
        "n": job.shown["n"],
        "output_format": str(job.output["format"]),
        "status": job.status,
        "progress": job.progress,
        "created_at": int(job.created_at_s),
        "completed_at": None if job.completed_at_s is None else int(job.completed_at_s),
        "expires_at": None if job.expires_at_s is None else int(job.expires_at_s),
        "predicted_finish_at": finish_at_s,
        "error": error_of(job),
        "urls": [url if name == IMAGES.main else f"{url}?variant={name}" for name in names],
        "vireo": report_of(job),
    }


FILES: Final = (IMAGES.main, *(f"image-{number}" for number in range(2, MAX_JOB_IMAGES + 1)))
JOBS: Final = JobHttp(
    path="/v1/images/jobs",
    id="image_job",
    task=IMAGES,
    service=lambda front: front.service.image_jobs,
    show=job_to_json,
    files=FILES,
    media_types=("image/png", "image/jpeg", "image/webp"),
    answer=ImageJobAnswer,
)
