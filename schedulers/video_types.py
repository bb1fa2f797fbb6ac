"""What happens to jobs in one replica that draws video, and what is decided about them: plain frozen data.

    JobArrived -> waiting -> running -> ... -> waiting to be decoded -> decoding -> Finish
                     ^         |
                     +-- (step boundary: another job is more urgent; its state may be parked outside memory)

Times are seconds on the driver's clock. Every job ends in exactly one of ``Finish``, ``Fail``, ``Release`` and
``GiveBack``.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TypeAlias

from schedulers.types import Drain, Priority, Tick


@dataclass(frozen=True, slots=True, kw_only=True)
class JobArrived:
    """A job that the engine has admitted. ``phase``: jobs of equal phase may share a step; None runs alone.

    ``tokens``: of one step, both branches of guidance. ``seconds_per_step``: predicted, alone in its batch.
    ``deadline_s`` is ``math.inf`` where there is none.

    Raises: ValueError: a number out of range.
    """

    job_id: str
    steps_left: int
    seconds_per_step: float
    tokens: int
    held_bytes: int
    phase: Hashable
    priority: Priority = Priority.NORMAL
    deadline_s: float = math.inf

    def __post_init__(self) -> None:
        if self.steps_left < 0 or self.tokens < 1 or self.held_bytes < 0 or math.isnan(self.deadline_s):
            raise ValueError(f"job {self.job_id}: steps_left, tokens, held_bytes or deadline_s out of range: {self}")
        if not 0 <= self.seconds_per_step < math.inf:
            raise ValueError(f"job {self.job_id}: seconds_per_step is {self.seconds_per_step}; need a finite number")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """One job after a batch: ``phase`` of its next step; ``failed`` jobs end in ``Fail``."""

    job_id: str
    phase: Hashable
    failed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFinished:
    """A batch came back, with one result for each of its jobs."""

    batch_id: int
    results: tuple[StepResult, ...]
    elapsed_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """A ``Decode`` came back."""

    job_id: str
    elapsed_s: float
    failed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCancelled:
    """The owner wants it to end, or the lease is lost. Ends in ``Release`` at the next step boundary."""

    job_id: str


VideoEvent: TypeAlias = JobArrived | StepFinished | Decoded | JobCancelled | Drain | Tick
"""``Drain``: jobs that wait are given back at once, running ones at their next step boundary; decodes finish."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStep:
    """Run one denoising step on these jobs in one batch; answered by one ``StepFinished``, always."""

    batch_id: int
    job_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decode:
    """Decode this job's latents, beside the steps of others; answered by one ``Decoded``, always."""

    job_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Preempted:
    """Not terminal: at a step boundary another job went first. For the record and the metrics."""

    job_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """Terminal: decoded."""

    job_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail:
    """Terminal: the engine failed it."""

    job_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Terminal: cancelled; its state may be freed."""

    job_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveBack:
    """Terminal here: snapshot it, and put it back into the queue for another replica (drain)."""

    job_id: str


VideoDecision: TypeAlias = RunStep | Decode | Preempted | Finish | Fail | Release | GiveBack
