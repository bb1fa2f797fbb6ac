"""Video jobs to OpenAI's JSON, with a ``vireo`` block."""

from __future__ import annotations

from typing import Any, cast

import msgspec

from models.io import ClipRequest
from serving.delivery.job.base import lowered
from serving.delivery.job.http import error_of, file_name
from serving.media.clip_timing import clip_seconds
from serving.stores.jobs.base import JobRecord, JobStatus
from serving.tasks.videos.schemas import VideoAnswer, VideoBlock, VideoSettingsAnswer

_CLIP = msgspec.json.Decoder(ClipRequest)


def video_to_json(job: JobRecord, url: str, finish_at_s: float | None = None) -> VideoAnswer:
    """Return the job as clients see it."""
    clip, artefact = _CLIP.decode(job.payload), job.artefacts.get("video")
    length_s = clip_seconds(clip.num_frames, int(job.output["fps"]), str(job.output["format"]))
    is_there = job.status is JobStatus.COMPLETED and artefact is not None
    compute_ms = job.report.get("compute_ms")
    return {
        "id": job.id,
        "object": "video",
        "model": job.model,
        "prompt": clip.prompt,
        "status": job.status,
        "progress": job.progress,
        "created_at": int(job.created_at_s),
        "completed_at": _second(job.completed_at_s),
        "expires_at": _second(job.expires_at_s),
        "seconds": seconds_text(length_s),
        "size": f"{clip.width}x{clip.height}",
        "remixed_from_video_id": None,
        "error": error_of(job),
        "url": url if is_there else None,
        "media_type": artefact.media_type if artefact is not None and is_there else None,
        "file_name": file_name(job.id, artefact.media_type) if artefact is not None and is_there else None,
        "inference_time_s": None if compute_ms is None else compute_ms / 1e3,
        "user": job.shown["user"],
        "vireo": _block(job, settings_of(job, clip), finish_at_s),
    }


def settings_of(job: JobRecord, clip: ClipRequest | None = None) -> VideoSettingsAnswer:
    """Return what decides what the clip looks like."""
    clip = clip or _CLIP.decode(job.payload)
    settings: dict[str, Any] = {
        **job.point,
        "width": clip.width,
        "height": clip.height,
        "variant": job.shown["variant"],
        "num_frames": clip.num_frames,
        "negative_prompt": clip.negative_prompt,
        "seed": job.seed,
        "fps": job.output["fps"],
        "output_format": job.output["format"],
    }
    return cast(VideoSettingsAnswer, settings)


def _block(job: JobRecord, settings: VideoSettingsAnswer, finish_at_s: float | None) -> VideoBlock:
    report = job.report
    return {
        "operating_point": job.operating_point,
        "energy_j": report.get("energy_j"),
        "energy_source": report.get("energy_source", "estimate"),
        "queue_ms": report.get("queue_ms"),
        "compute_ms": report.get("compute_ms"),
        "cache": report.get("cache", "off"),
        "degraded": list(report.get("degraded", ())),
        "degradation": lowered(report),
        "guard": dict(report.get("guard", {})),
        "settings": settings,
        "stage": job.stage,
        "step": job.step,
        "num_steps": job.num_steps,
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


def seconds_text(seconds: float) -> str:
    """Return a length as OpenAI spells it: a string, ``4`` and not ``4.0``."""
    return f"{seconds:.3f}".rstrip("0").rstrip(".")


def _second(time_s: float | None) -> int | None:
    return None if time_s is None else int(time_s)
