"""Video jobs in memory, for tests of what clients see. A job goes on when the test says so."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from models.io import ClipRequest
from schedulers.plan import Load
from serving.delivery.job.base import JobModel, JobPlan, JobRequest, JobUpdate
from serving.errors import InvalidRequest, UnknownVideo
from serving.service import Card
from serving.stores.jobs.base import Artefact, JobError, JobPage, JobRecord, JobStatus
from serving.tasks.images.jobs import FILES, ImagesJob
from serving.tasks.videos.limits import ClipLimits
from serving.tasks.videos.schemas import VideoBody
from tests.support.clip_limits import clip_limits

VIDEO_MODEL = "fake-video"
CREATED_S = 1_790_000_000.0
CLIP = b"\x00\x00\x00\x18ftypmp42" + bytes(range(256)) * 2000
"""Stands for an MP4 of more than one piece."""
THUMBNAIL = b"\xff\xd8\xff" + bytes(100)
NUM_STEPS = 4
REPORT = {
    "operating_point": "quick",
    "energy_j": 1.5,
    "energy_source": "estimate",
    "queue_ms": 2.0,
    "compute_ms": 250.0,
    "stages_s": {"text": 0.01, "denoise": 0.2, "decode": 0.04},
    "sparsity": 0.5,
    "peak_bytes": 4096,
    "resumed_at_step": 0,
}


def make_video_card(model: str = VIDEO_MODEL, limits: ClipLimits | None = None) -> Card:
    limits = limits or clip_limits()
    return Card(
        id=model,
        made_of=model,
        family="fake",
        shape="job",
        tasks=("videos",),
        licence="MIT",
        created_s=1_700_000_002,
        io=limits.io,
        checkpoint_sha256="ef" * 32,
        operating_points=("full", "quick"),
        knobs=limits.family.knobs,
    )


def planned(request: JobRequest[VideoBody], seed: int, load: Load) -> JobPlan:
    asked = request.asked
    return JobPlan(
        request=ClipRequest(
            prompt=asked.prompt,
            negative_prompt=asked.negative_prompt or "",
            num_frames=asked.num_frames or 29,
            width=asked.width or 64,
            height=asked.height or 64,
            fps=asked.fps or 8,
        ),
        point={
            "num_inference_steps": asked.num_inference_steps or NUM_STEPS,
            "guidance_scale": 5.0 if asked.guidance_scale is None else asked.guidance_scale,
            "sampler": asked.sampler or "euler_ancestral",
            "attention": asked.attention or "dense",
            **request.budget.settings,
        },
        seed=asked.seed or seed,
        num_steps=asked.num_inference_steps or NUM_STEPS,
        name="quick",
        predicted_s=10.0,
        predicted_j=60.0,
        output={"format": asked.output_format or "mp4", "fps": asked.fps or 8},
        shown={"variant": "teacher", "user": asked.user or ""},
    )


class FakeVideos:
    """Part of ``FakeService``. ``video_error`` is raised by every method; ``is_fast``: jobs are done when created."""

    def __init__(self, video_cards: Sequence[Card] = (), is_fast: bool = False) -> None:
        self.video_cards = tuple(video_cards)
        self.plans: dict[str, Any] = {}
        """By model; ``planned`` for all others."""
        self.is_fast = is_fast
        self.clip = CLIP
        self.video_error: BaseException | None = None
        self.video_requests: list[JobRequest[Any]] = []
        self.jobs: dict[str, JobRecord] = {}
        self.cancelled: list[str] = []
        self.previews: dict[str, bytes] = {}
        self.watchers = 0
        self.read_error_at: int | None = None
        """Reads of a file from this byte on fail."""
        self.created = asyncio.Event()
        self._changes: list[asyncio.Event] = []

    # -- what tests do -----------------------------------------------------------------------------------------------

    def change(self, video_id: str, **changes: Any) -> None:
        """Set fields of a job; watchers hear of it."""
        self.jobs[video_id] = replace(self.jobs[video_id], **changes)
        for change in self._changes:
            change.set()

    def run_steps(self, video_id: str, step: int) -> None:
        """The job is at a step."""
        self.change(
            video_id,
            status=JobStatus.IN_PROGRESS, stage="denoise", step=step, attempts=1, started_at_s=CREATED_S + 1,
            remaining_s=10.0 - step,
        )  # fmt: skip

    def complete(self, video_id: str) -> None:
        """The job has its files."""
        clip = self.clip
        is_gif = self.jobs[video_id].output["format"] == "gif"
        files = {"video": (clip, "image/gif" if is_gif else "video/mp4"), "thumbnail": (THUMBNAIL, "image/jpeg")}
        if self.jobs[video_id].task == "images":
            files = dict.fromkeys(FILES[: self.jobs[video_id].shown["n"]], (clip, "image/png"))
        self.change(
            video_id,
            status=JobStatus.COMPLETED, stage="done", step=self.jobs[video_id].num_steps, report=REPORT,
            completed_at_s=CREATED_S + 12, expires_at_s=CREATED_S + 3600,
            artefacts={
                name: Artefact(
                    key=f"{video_id}/{name}", media_type=kind, num_bytes=len(data),
                    sha256=hashlib.sha256(data).hexdigest(),
                )
                for name, (data, kind) in files.items()
            },
        )  # fmt: skip

    def fail(
        self, video_id: str, code: str = "engine_failed", message: str = "the model failed", param: str | None = None
    ) -> None:
        """The job ends without a clip."""
        error = JobError(code=code, message=message, param=param)
        self.change(video_id, status=JobStatus.FAILED, error=error, completed_at_s=CREATED_S + 3)

    # -- serving.delivery.job.base.JobService ------------------------------------------------------------------------

    @property
    def job_models(self) -> dict[str, JobModel]:
        return {card.id: JobModel(card=card, plan=self.plans.get(card.id, planned)) for card in self.video_cards}

    async def create(self, request: JobRequest[Any]) -> JobRecord:
        self._check()
        self.video_requests.append(request)
        number = len(self.video_requests)
        is_image = isinstance(request, ImagesJob)
        plan = request.plan if isinstance(request, ImagesJob) else planned(request, 0, 0.0)
        job = JobRecord(
            id=f"{'image' if is_image else 'video'}_{request.idempotency_key or number:0>4}",
            owner=request.tenant,
            task="images" if is_image else "videos",
            model=request.model,
            payload=msgspec.json.encode(plan.request),
            point=plan.point,
            seed=plan.seed,
            num_steps=plan.num_steps,
            output=plan.output,
            shown=plan.shown,
            created_at_s=CREATED_S + number,
            predicted_s=plan.predicted_s,
            predicted_j=plan.predicted_j,
            operating_point=plan.name,
            report={"degraded": list(plan.degraded)},
            priority=request.budget.priority,
        )
        self.jobs.setdefault(job.id, job)
        if self.is_fast:
            self.run_steps(job.id, 1)
            self.complete(job.id)
        self.created.set()
        return self.jobs[job.id]

    async def get(self, owner: str, video_id: str) -> JobRecord:
        self._check()
        job = self.jobs.get(video_id)
        if job is None or job.owner != owner:
            raise UnknownVideo(f"no video has the id {video_id}", param="id")
        return job

    async def page(self, owner: str, *, after: str | None, limit: int, newest_first: bool) -> JobPage:
        self._check()
        jobs = [job for job in self.jobs.values() if job.owner == owner]
        jobs.sort(key=lambda job: job.created_at_s, reverse=newest_first)
        ids = [job.id for job in jobs]
        if after is not None and after not in ids:
            raise InvalidRequest(f"after names no video: {after}", param="after")
        start = 0 if after is None else ids.index(after) + 1
        return JobPage(jobs=tuple(jobs[start : start + limit]), has_more=len(jobs) > start + limit)

    async def cancel(self, owner: str, video_id: str) -> JobRecord:
        job = await self.get(owner, video_id)
        self.cancelled.append(video_id)
        if not job.status.is_final:
            self.fail(video_id, "cancelled", "the job was cancelled")
        return self.jobs[video_id]

    async def delete(self, owner: str, video_id: str) -> JobRecord:
        job = await self.get(owner, video_id)
        if not job.status.is_final:
            return await self.cancel(owner, video_id)
        return self.jobs.pop(video_id)

    async def read(self, artefact: Artefact, start: int, end: int) -> bytes:
        if self.read_error_at is not None and start >= self.read_error_at:
            raise UnknownVideo("the file is gone", param="id")
        data = THUMBNAIL if artefact.key.endswith("thumbnail") else self.clip
        return data[start:end]

    async def watch(self, owner: str, video_id: str) -> AsyncGenerator[JobUpdate, None]:
        changed = asyncio.Event()
        self._changes.append(changed)
        self.watchers += 1
        try:
            while True:
                changed.clear()
                job = await self.get(owner, video_id)
                left_s = job.remaining_s
                finish_at_s = None if left_s is None or job.status.is_final else CREATED_S + left_s
                yield JobUpdate(job=job, finish_at_s=finish_at_s, preview=self.previews.get(video_id))
                if job.status.is_final:
                    return
                await changed.wait()
        finally:
            self.watchers -= 1
            self._changes.remove(changed)

    def _check(self) -> None:
        if self.video_error is not None:
            raise self.video_error
