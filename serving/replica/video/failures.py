"""Between errors of a call and the recorded errors of a job."""

from __future__ import annotations

from serving import errors
from serving.errors import EngineFailed, ReplicaLost, ServingError
from serving.tasks.videos.domain import VideoJob

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
