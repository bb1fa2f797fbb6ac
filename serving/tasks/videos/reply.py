"""Video jobs to OpenAI's JSON, with a ``vireo`` block, and to server-sent events."""

from __future__ import annotations

import base64
import re
from typing import Final

import orjson

from serving.front.http.body import Headers
from serving.service import VideoModelCard
from serving.stores.jobs.base import JobPage
from serving.tasks.base import ModelBlock
from serving.tasks.chat.reply import clean
from serving.tasks.videos.domain import JobStatus, VideoFormat, VideoJob, VideoUpdate
from serving.tasks.videos.schemas import (
    VideoAnswer,
    VideoBlock,
    VideoEventAnswer,
    VideoListAnswer,
    VideoModelBlock,
)

SUFFIXES: Final = {"video/mp4": ".mp4", "image/gif": ".gif", "image/jpeg": ".jpg", "image/png": ".png"}
_HOST = re.compile(r"[A-Za-z0-9.\-_]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?")


def content_url(headers: Headers, scheme: str, video_id: str) -> str:
    """Return where the clip of a job is, by the address that the caller used; only a path if that is not known."""
    path = f"/v1/videos/{video_id}/content"
    host = headers.get(b"host", b"").decode("latin-1")
    if not _HOST.fullmatch(host):
        return path
    forwarded = headers.get(b"x-forwarded-proto", b"").decode("latin-1").strip().lower()
    return f"{forwarded if forwarded in ('http', 'https') else scheme}://{host}{path}"


def video_to_json(job: VideoJob, url: str, finish_at_s: float | None = None) -> VideoAnswer:
    """Return the job as clients see it."""
    settings, artefact = job.settings, job.artefacts.get("video")
    is_there = job.status is JobStatus.COMPLETED and artefact is not None
    compute_ms = job.report.get("compute_ms")
    return {
        "id": job.id,
        "object": "video",
        "model": job.model,
        "prompt": settings.prompt,
        "status": job.status,
        "progress": job.progress,
        "created_at": int(job.created_at_s),
        "completed_at": _second(job.completed_at_s),
        "expires_at": _second(job.expires_at_s),
        "seconds": seconds_text(job.seconds),
        "size": f"{settings.width}x{settings.height}",
        "remixed_from_video_id": None,
        "error": None if job.error is None else {"code": job.error.code, "message": clean(job.error.message)},
        "url": url if is_there else None,
        "media_type": artefact.media_type if artefact is not None and is_there else None,
        "file_name": file_name(job.id, artefact.media_type) if artefact is not None and is_there else None,
        "inference_time_s": None if compute_ms is None else compute_ms / 1e3,
        "user": job.user,
        "vireo": _block(job, finish_at_s),
    }


def _block(job: VideoJob, finish_at_s: float | None) -> VideoBlock:
    settings, report = job.settings, job.report
    return {
        "operating_point": job.operating_point,
        "energy_j": report.get("energy_j"),
        "energy_source": report.get("energy_source", "estimate"),
        "queue_ms": report.get("queue_ms"),
        "compute_ms": report.get("compute_ms"),
        "cache": report.get("cache", "off"),
        "degraded": list(report.get("degraded", ())),
        "guard": dict(report.get("guard", {})),
        "settings": {
            "width": settings.width,
            "height": settings.height,
            "num_frames": settings.num_frames,
            "fps": settings.fps,
            "num_inference_steps": settings.num_steps,
            "guidance_scale": settings.guidance_scale,
            "seed": settings.seed,
            "sampler": settings.sampler,
            "attention": settings.attention,
            "variant": settings.variant,
            "output_format": VideoFormat(settings.output_format),
            "negative_prompt": settings.negative_prompt,
        },
        "stage": job.stage,
        "step": job.step,
        "num_steps": settings.num_steps,
        "attempts": job.attempts,
        "preemptions": job.preemptions,
        "priority": job.priority,
        "predicted_s": job.predicted_s,
        "predicted_j": job.predicted_j,
        "remaining_s": None if job.status.is_final else job.remaining_s,
        "predicted_finish_at": None if job.status.is_final else finish_at_s,
        "deadline_at": job.deadline_at_s,
        "stages_s": dict(report.get("stages_s", {})),
        "sparsity": report.get("sparsity"),
        "peak_bytes": report.get("peak_bytes"),
        "resumed_at_step": report.get("resumed_at_step", 0),
    }


def page_to_json(page: JobPage, urls: list[str]) -> VideoListAnswer:
    """Return a page of jobs."""
    data = [video_to_json(job, url) for job, url in zip(page.jobs, urls, strict=True)]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": page.has_more,
    }


def event_of(update: VideoUpdate, url: str) -> bytes:
    """Return the server-sent event: its name is ``progress``, or the status of a job that is over."""
    job = update.job
    name = job.status.value if job.status.is_final else "progress"
    preview = update.preview
    shown = None if preview is None else f"data:image/jpeg;base64,{base64.b64encode(preview).decode()}"
    document: VideoEventAnswer = {**video_to_json(job, url, update.finish_at_s), "preview": shown}
    return b"event: %s\ndata: %s\n\n" % (name.encode(), orjson.dumps(document))


def video_block(card: VideoModelCard, block: ModelBlock) -> VideoModelBlock:
    """Return what ``/v1/models`` says of a video model."""
    return {
        **block,
        "outputs": ("video",),
        "sizes": tuple(f"{width}x{height}" for width, height in card.sizes),
        "num_frames": card.num_frames,
        "fps": card.fps,
        "max_steps": card.max_steps,
        "samplers": card.samplers,
        "attention": card.attention,
        "operating_points": card.operating_points,
    }


def file_name(video_id: str, media_type: str) -> str:
    """Return what the file may be called."""
    return video_id + SUFFIXES.get(media_type, "")


def seconds_text(seconds: float) -> str:
    """Return a length as OpenAI spells it: a string, ``4`` and not ``4.0``."""
    return f"{seconds:.3f}".rstrip("0").rstrip(".")


def _second(time_s: float | None) -> int | None:
    return None if time_s is None else int(time_s)
