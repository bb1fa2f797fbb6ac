"""What gateways and replicas need of the job index. ``serving.stores.jobs.redis_jobs`` implements it.

    create -> queued --claim--> in_progress --complete--> completed
                ^                   |  |
                |   lease expired,  |  +-----fail-------> failed
                +---- requeue ------+
    cancel: queued -> failed(cancelled) at once; in_progress -> the worker learns of it with its next heartbeat

A lease has a fencing token: whoever lost it can neither report progress nor complete, so a job is done once.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from serving.tasks.videos.domain import Artefact, JobError, VideoJob


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to work on a job until it is not renewed any more."""

    job_id: str
    token: str
    """Unique for each claim."""
    worker: str


class LeaseState(Enum):
    """What a renewal was answered with."""

    HELD = "held"
    CANCELLED = "cancelled"
    """Still held, and the owner wants the job to end: stop and call ``fail`` with code ``cancelled``."""
    LOST = "lost"
    """Somebody else may be at work: drop everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A job to work on, and the right to."""

    job: VideoJob
    lease: Lease


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPage:
    """One page of a list; ``next_after`` is None on the last."""

    jobs: tuple[VideoJob, ...]
    has_more: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a worker says of a running job."""

    stage: str
    step: int
    remaining_s: float | None = None
    checkpoint_step: int = 0
    preemptions: int = 0


class JobIndex(Protocol):
    """Durable records of jobs. Every method raises ``StoreUnavailable`` when Redis is away: jobs never fail open."""

    async def create(self, job: VideoJob, *, max_queued: int) -> None:
        """Store a queued job. Raises: QueueFull: that owner's or the whole queue is at its bound."""
        ...

    async def get(self, owner: str, job_id: str) -> VideoJob | None:
        """The job, if there is one of that id and it is the owner's; unknown and not-yours look the same."""
        ...

    async def list_jobs(self, owner: str, *, after: str | None, limit: int, newest_first: bool) -> JobPage | None:
        """A page of the owner's jobs by creation time. None: ``after`` names no job of the owner."""
        ...

    async def cancel(self, owner: str, job_id: str) -> VideoJob | None:
        """End a job that is not final (see the module); a final one is left as it is. None: no such job."""
        ...

    async def delete(self, owner: str, job_id: str) -> VideoJob | None:
        """Remove a final job from the index. The caller deletes its artefacts. None: no such job, or not final."""
        ...

    async def claim(self, models: tuple[str, ...], worker: str, lease_s: float) -> Claim | None:
        """Take the first job of those models in the scheduler's order, and put expired leases back first.

        A job whose attempts are used up fails with code ``attempts_exhausted``. None: nothing to do.
        """
        ...

    async def renew(self, lease: Lease, lease_s: float, progress: Progress) -> LeaseState:
        """Keep a lease and report; one round trip."""
        ...

    async def requeue(self, lease: Lease, progress: Progress, *, counts_as_attempt: bool) -> bool:
        """Give a job back: drain, preemption, a lost rank. Returns whether the lease was still held."""
        ...

    async def complete(
        self, lease: Lease, artefacts: dict[str, Artefact], report: dict[str, object], ttl_s: float
    ) -> bool:
        """Done. Returns False, and changes nothing, if the lease was lost."""
        ...

    async def fail(self, lease: Lease, error: JobError, report: dict[str, object], ttl_s: float) -> bool:
        """Over, without a clip. Returns False, and changes nothing, if the lease was lost."""
        ...

    async def num_queued(self, model: str) -> int:
        """Jobs that wait."""
        ...

    async def queued_s(self, model: str) -> float:
        """Predicted engine seconds of all jobs that wait."""
        ...
