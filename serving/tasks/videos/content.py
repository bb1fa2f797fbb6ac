"""What of a job can be sent: the file of a variant, or why there is none. The same for HTTP and gRPC."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from serving.errors import ServingError, UnknownVideo, VideoFailed, VideoNotReady
from serving.front.front import Front
from serving.tasks.videos.domain import Artefact, JobStatus, VideoJob


def artefact_of(job: VideoJob, variant: str) -> Artefact:
    """Raises: VideoNotReady, VideoFailed, UnknownVideo: there is none."""
    if job.status is JobStatus.FAILED:
        why = "unknown" if job.error is None else job.error.code
        raise VideoFailed(f"video {job.id} has no content: it failed ({why}). Create it again", param="id")
    if job.status is not JobStatus.COMPLETED:
        raise VideoNotReady(f"video {job.id} is {job.status}, {job.progress} %; wait until it is completed", param="id")
    artefact = job.artefacts.get(variant)
    if artefact is None:
        raise UnknownVideo(f"video {job.id} has no {variant}", param="variant")
    return artefact


async def cancel_for_good(front: Front, job: VideoJob) -> None:
    """Cancel a job that nobody waits for any more, even while this task is being cancelled."""

    async def cancel() -> None:
        with suppress(ServingError):
            await front.service.cancel_video(job.owner, job.id)

    await asyncio.shield(asyncio.ensure_future(cancel()))
