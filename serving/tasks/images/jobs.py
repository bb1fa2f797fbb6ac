"""Pictures that are made as durable jobs: when they are, what they are called, and ``/v1/images/jobs``."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any, Final

from models.contract import Value
from schedulers.plan import Load
from serving.delivery.job.base import JobPlan, JobRequest, JobTask, report_of
from serving.delivery.job.http import JobHttp, check_key
from serving.domain import UnaryRequest
from serving.errors import ImageFailed, ImageNotReady, TooManyImages, UnknownImage
from serving.front.http.call import Call
from serving.stores.jobs.base import JobRecord, JobStatus
from serving.tasks.chat.reply import clean
from serving.tasks.images.rules import ImagesAsked
from serving.tasks.images.schemas import GenerationBody, ImageJobAnswer

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


async def begin_job(call: Call, body: GenerationBody, asked: ImagesAsked, request: UnaryRequest) -> JobRecord | None:
    """Queue a job if the caller asks for one, or if it is predicted to take long. Raises: ServingError."""
    background = None if body.vireo is None else body.vireo.background
    if background is False:
        return None
    service = call.front.service
    plan = await service.unary.plan_job(request, 0.0 if background else JOB_FROM_S)
    if plan is None:
        return None
    if asked.count > MAX_JOB_IMAGES:
        raise TooManyImages(f"n is {asked.count}; a job makes at most {MAX_JOB_IMAGES} images", param="n")
    output: dict[str, Value] = {"format": asked.format}
    if asked.compression is not None:
        output["quality"] = asked.compression
    shown = {"prompt": asked.prompt, "seeds": list(request.seeds), "n": asked.count}
    plan = replace(
        plan,
        degraded=plan.degraded if background else (*plan.degraded, "background"),
        output=output,
        shown=shown,
    )
    job = ImagesJob(
        request_id=call.request_id,
        surface=call.surface,
        tenant=call.tenant,
        model=request.model,
        asked=_alike(body, asked),
        budget=request.budget,
        idempotency_key=check_key(call.header(b"idempotency-key") or ""),
        plan=plan,
    )
    return await service.image_jobs.create(job)


def _alike(body: GenerationBody, asked: ImagesAsked) -> GenerationBody:
    """The body with one spelling for each meaning, whether it came as JSON or as a form; the picture as a digest."""
    said: dict[str, Any] = {
        "n": asked.count,
        "size": asked.size,
        "output_format": asked.format,
        "response_format": None,
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
        "error": None if job.error is None else {"code": job.error.code, "message": clean(job.error.message)},
        "urls": [url if name == IMAGES.main else f"{url}?variant={name}" for name in names],
        "vireo": report_of(job),
    }


FILES: Final = (IMAGES.main, *(f"image-{number}" for number in range(2, MAX_JOB_IMAGES + 1)))
JOBS: Final = JobHttp(
    path="/v1/images/jobs",
    task=IMAGES,
    service=lambda front: front.service.image_jobs,
    show=job_to_json,
    files=FILES,
    media_types=("image/png", "image/jpeg", "image/webp"),
    answer=ImageJobAnswer,
)
