"""The types in which the HTTP surface, gRPC, the job store and the replicas of video generation meet.

Free of torch, Redis and Ray. Seconds and joules inside; milliseconds only where ``serving.domain`` has them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from models.contract import Value
from models.io import ClipRequest
from serving import errors
from serving.domain import Budget, Surface
from serving.errors import EngineFailed, ReplicaLost, ServingError


class VideoFormat(StrEnum):
    """How a finished clip is encoded."""

    MP4 = "mp4"
    GIF = "gif"


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoRequest:
    """A whole request for a clip, parsed and authenticated; ``None`` leaves the choice to the operating point.

    ``num_frames``, ``width``, ``height`` and ``fps`` are in pixels and frames of the finished clip. Ranges that depend
    on the model are checked by the service, everything else by the ingress.
    """

    request_id: str
    surface: Surface
    tenant: str
    model: str
    prompt: str
    negative_prompt: str = ""
    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    seconds: float | None = None
    """Length asked for, of which the nearest possible number of frames is made; ``num_frames`` goes before it."""
    fps: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    seed: int | None = None
    sampler: str | None = None
    attention: str | None = None
    """``dense``, ``tile:2:6``, ``adaspa:0.8``, ``ras:0.5``: see ``VideoSettings.attention``."""
    output_format: VideoFormat = VideoFormat.MP4
    budget: Budget = field(default_factory=Budget)
    user: str = ""
    """The caller's own label; returned, never interpreted."""
    idempotency_key: str = ""
    """Requests of one tenant with the same key are one job, however often they are sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoSettings:
    """Everything that decides what a clip looks like: same settings and checkpoint, same clip. Plain numbers: it is
    stored in the job's record and sent to the engine.

    ``attention``: ``dense``, ``tile:K:F-K`` (K reference frames), ``adaspa:SPARSITY``, ``ras:SHARE`` of tokens run.
    """

    prompt: str
    negative_prompt: str
    width: int
    height: int
    num_frames: int
    fps: int
    num_steps: int
    guidance_scale: float
    seed: int
    sampler: str
    attention: str
    variant: str = "teacher"
    """Which weights of the model: ``teacher`` or ``student`` (few steps)."""
    output_format: str = VideoFormat.MP4

    @property
    def clip(self) -> ClipRequest:
        """What the clip shall show."""
        return ClipRequest(prompt=self.prompt, negative_prompt=self.negative_prompt, num_frames=self.num_frames)

    @property
    def point(self) -> dict[str, Value]:
        """How it is made: settings of the family's knobs."""
        return {
            "num_inference_steps": self.num_steps,
            "sampler": self.sampler,
            "guidance_scale": self.guidance_scale,
            "attention": self.attention,
        }


class JobStatus(StrEnum):
    """Where a job stands; ``cancelled`` is ``failed`` with the error code ``cancelled``."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"

    @property
    def is_final(self) -> bool:
        """Whether nothing will change any more."""
        return self in (JobStatus.COMPLETED, JobStatus.FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobError:
    """Why a job failed: a stable code of ``serving.errors`` and a message for the caller."""

    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Artefact:
    """A file of a finished job in the shared store. ``key`` is relative to the store's root."""

    key: str
    media_type: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoJob:
    """One job as the index has it. Times are Unix seconds; ``None``: not yet.

    ``artefacts`` by variant: ``video`` and ``thumbnail``. ``checkpoint_step``: steps that the latents hold which are
    known to be in the store of clips. ``report`` is the ``vireo`` block so far. ``asked``: digests of what the request
    said, field by field, where it had an idempotency key.
    """

    id: str
    owner: str
    model: str
    settings: VideoSettings
    status: JobStatus = JobStatus.QUEUED
    priority: str = "normal"
    created_at_s: float
    deadline_at_s: float | None = None
    predicted_s: float = 0.0
    """Engine seconds that the whole job was expected to need when it was admitted."""
    predicted_j: float = 0.0
    started_at_s: float | None = None
    completed_at_s: float | None = None
    expires_at_s: float | None = None
    attempts: int = 0
    preemptions: int = 0
    step: int = 0
    stage: str = "queued"
    """``queued``, ``text``, ``denoise``, ``decode``, ``encode``, ``store``, ``done``."""
    checkpoint_step: int = 0
    artefacts: dict[str, Artefact] = field(default_factory=dict)
    error: JobError | None = None
    report: dict[str, Any] = field(default_factory=dict)
    operating_point: str = ""
    user: str = ""
    asked: dict[str, str] = field(default_factory=dict)
    remaining_s: float | None = None
    """Engine seconds that the replica expects to need still; None while queued."""

    @property
    def seconds(self) -> float:
        """Length of the clip."""
        return self.settings.num_frames / self.settings.fps

    @property
    def progress(self) -> int:
        """Percent, 0 to 100; 100 only once completed."""
        if self.status is JobStatus.COMPLETED:
            return 100
        return min(99, int(99 * self.step / max(1, self.settings.num_steps)))


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoUpdate:
    """A job as it is now, for whoever watches it. The last update of a job is final."""

    job: VideoJob
    finish_at_s: float | None = None
    """Unix time at which the clip is expected; None: not known, or over."""
    preview: bytes | None = None
    """JPEG of a frame as far as it is denoised; None where there is none, or none that is new."""


# -- where the files of a job lie in the store of clips --------------------------------------------------------------


def folder(job_id: str) -> str:
    """Everything of a job is below it."""
    return f"jobs/{job_id}"


def preview_key(job_id: str) -> str:
    """A frame as far as it is denoised, JPEG; written over and over."""
    return f"{folder(job_id)}/preview.jpg"


# -- errors of calls, and those that jobs record ---------------------------------------------------------------------

CANCELLED = errors.Cancelled.code
ATTEMPTS_EXHAUSTED = "attempts_exhausted"
"""Code of a job whose replicas died until its attempts were used up."""


def error_of(job: VideoJob) -> ServingError:
    """Return what a call that waited for the job fails with."""
    if job.error is None:
        return EngineFailed("the job failed")
    if job.error.code == ATTEMPTS_EXHAUSTED:
        return ReplicaLost(job.error.message)
    return _classes().get(job.error.code, EngineFailed)(job.error.message)


def _classes() -> dict[str, type[ServingError]]:
    found = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, ServingError)]
    return {one.code: one for one in found}
