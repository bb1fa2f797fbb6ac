"""A durable job, whatever it makes, as ``serving.stores.jobs.redis_jobs`` keeps it.

    create -> queued --claim--> in_progress --complete--> completed
                ^                   |  |
                |   lease expired,  |  +-----fail-------> failed
                +---- requeue ------+
    cancel: queued -> failed(cancelled) at once; in_progress -> the worker learns of it with its next heartbeat

A lease has a fencing token: whoever lost it can neither report progress nor complete, so a job is done once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Any, Final

from models.contract import Value
from schedulers.admission import Cost
from schedulers.fair_queue import EQUAL, Weights
from schedulers.fair_wait import turn_s
from serving import errors

CANCELLED: Final = errors.Cancelled.code
ATTEMPTS_EXHAUSTED: Final = "attempts_exhausted"
"""Code of a job whose replicas died until its attempts were used up."""
MAX_PAYLOAD_BYTES: Final = 8 << 20
"""Of a record. Larger inputs belong into the store of files."""


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
    """Why a job failed: a stable code of ``serving.errors``, a message for the caller, and the field at fault."""

    code: str
    message: str
    param: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Artefact:
    """A file of a finished job in the shared store. ``key`` is relative to the store's root."""

    key: str
    media_type: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """One job as the index has it. Times are Unix seconds; ``None``: not yet.

    What is made: ``payload`` is the request as the task encoded it, which the model's io decodes (``models.io``);
    ``point`` are the settings of the family's knobs. Same payload, point, seed and checkpoint: same outputs.
    ``inputs``: bytes of that request which are files, by the names of its fields.
    ``output``: how they are written to files (``serving.replica.job.outputs``). ``shown``: what else the task's reply
    repeats. ``asked``: digests of what the request said, field by field, where it had an idempotency key.
    ``traceparent``: of the request that made it.

    How far it is: ``step`` of ``num_steps`` slices, in the phase ``stage``. ``checkpoint_step``: slices in the state
    that is known to be in the store. ``artefacts`` by name. ``report``: what was measured, and what was degraded.
    """

    id: str
    owner: str
    task: str
    model: str
    checkpoint: str = ""
    payload: bytes
    point: dict[str, Value]
    seed: int
    num_steps: int
    inputs: dict[str, Artefact] = field(default_factory=dict)
    output: dict[str, Value] = field(default_factory=dict)
    shown: dict[str, Any] = field(default_factory=dict)
    asked: dict[str, str] = field(default_factory=dict)
    traceparent: str = ""
    priority: str = "normal"
    operating_point: str = ""
    created_at_s: float
    deadline_at_s: float | None = None
    predicted_s: float = 0.0
    """Engine seconds that the whole job was expected to need when it was admitted."""
    predicted_j: float = 0.0
    most_s: float = 0.0
    """Engine seconds that it was expected to need at most."""
    held_bytes: int = 0
    """The most that it may hold in memory at a time."""
    charged_j: float = 0.0
    charged_s: float = 0.0
    """What its owner was charged when it was taken in; both 0 in a record of before there were these: as predicted."""
    elsewhere_j: float = 0.0
    """Joules that other models had served its owner of late when it was made (``schedulers.elsewhere``)."""
    status: JobStatus = JobStatus.QUEUED
    started_at_s: float | None = None
    completed_at_s: float | None = None
    expires_at_s: float | None = None
    attempts: int = 0
    preemptions: int = 0
    step: int = 0
    stage: str = "queued"
    """``queued``, a phase of the engine (``text``, ``denoise``, ``decode``), ``encode``, ``store``, ``done``."""
    checkpoint_step: int = 0
    remaining_s: float | None = None
    """Engine seconds that the replica expects to need still; None while queued."""
    artefacts: dict[str, Artefact] = field(default_factory=dict)
    error: JobError | None = None
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def progress(self) -> int:
        """Percent, 0 to 100; 100 only once completed."""
        if self.status is JobStatus.COMPLETED:
            return 100
        return min(99, int(99 * self.step / max(1, self.num_steps)))

    @property
    def failure(self) -> errors.ServingError:
        """What a call that waited for a job that failed fails with."""
        if self.error is None:
            return errors.EngineFailed("the job failed")
        if self.error.code == ATTEMPTS_EXHAUSTED:
            return errors.ReplicaLost(self.error.message)
        known = (one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.ServingError))
        return {one.code: one for one in known}.get(self.error.code, errors.EngineFailed)(
            self.error.message, param=self.error.param
        )

    @property
    def charged(self) -> Cost:
        """What the owner was charged when it was taken in."""
        if not (self.charged_j or self.charged_s):
            return Cost(self.predicted_j, self.predicted_s)
        return Cost(self.charged_j, self.charged_s)

    @property
    def taken(self) -> Cost:
        """What a job that is over has taken. One that nobody ran to its end and that was cancelled: the steps that an
        earlier attempt has left in a checkpoint. What attempts took whose replicas died is not the owner's fault."""
        if "compute_ms" in self.report:
            charged_j = self.report.get("charged_j", self.report.get("energy_j"))
            return Cost(charged_j or 0.0, self.report["compute_ms"] / 1e3)
        is_cancelled = self.error is not None and self.error.code == CANCELLED
        done = self.checkpoint_step / max(1, self.num_steps) if is_cancelled else 0.0
        return Cost(done * self.predicted_j, done * self.predicted_s)


# -- where the files of a job lie in the shared store ----------------------------------------------------------------


def folder(job_id: str) -> str:
    """Everything of a job is below it."""
    return f"jobs/{job_id}"


def input_key(job_id: str, name: str, data: bytes) -> str:
    """Bytes that go in. Named by what they are: two requests with one idempotency key may come at the same time."""
    return f"{folder(job_id)}/{name}-{hashlib.sha256(data).hexdigest()[:16]}"


def preview_key(job_id: str) -> str:
    """A picture of what it has come to, JPEG; written over and over."""
    return f"{folder(job_id)}/preview.jpg"


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

    job: JobRecord
    lease: Lease


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPage:
    """One page of a list; ``next_after`` is None on the last."""

    jobs: tuple[JobRecord, ...]
    has_more: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class JobQueue:
    """Predicted engine seconds of the jobs that wait for a model. ``called_s``: of those that came back, which go
    first; ``owners_s``: of the others, by owner. ``weights``: of owners."""

    called_s: float = 0.0
    owners_s: Mapping[str, float] = field(default_factory=dict)
    weights: Weights = field(default_factory=lambda: EQUAL)

    @property
    def total_s(self) -> float:
        """Of all."""
        return self.called_s + math.fsum(self.owners_s.values())

    def turn_s(self, owner: str, seconds: float) -> float:
        """What runs before a job of so many seconds that the owner makes now is done, itself left out."""
        return self.called_s + turn_s(self.owners_s, owner, seconds, self.weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a worker says of a running job."""

    stage: str
    step: int
    remaining_s: float | None = None
    checkpoint_step: int = 0
    preemptions: int = 0
