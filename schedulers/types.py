"""Events that go into a scheduler and decisions that come out of it.

All are frozen and keyword-only. Times are seconds on one monotonic clock that the caller owns. A sample is one image
of one request; its life is

    SampleArrived -> waiting(stage 0) -> running(stage 0) -> waiting(stage 1) -> ... -> one terminal decision

and the terminal decision is exactly one of ``Reply``, ``Reject``, ``Fail``, ``Release``, ever.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Protocol, TypeAlias


class Priority(IntEnum):
    """How urgent a sample is relative to others of the same deadline; larger is more urgent."""

    LOW = 0
    NORMAL = 1
    HIGH = 2


class RejectReason(Enum):
    """Why a sample was never answered; the value is the stable wire spelling."""

    QUEUE_FULL = "queue_full"
    DEADLINE_PASSED = "deadline_passed"
    DEADLINE_UNREACHABLE = "deadline_unreachable"
    DRAINING = "draining"


# -- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleArrived:
    """A new sample.

    ``deadline_s`` is absolute on the caller's clock; ``math.inf`` means none. ``thresholds`` has one confidence per
    exit: the sample leaves at exit k when its confidence there is >= ``thresholds[k]``; the last exit always answers,
    whatever its threshold says. ``math.inf`` means "never leave here".

    Raises:
        ValueError: if ``deadline_s`` or a threshold is not a number, or there are no thresholds.
    """

    sample_id: int
    deadline_s: float
    thresholds: tuple[float, ...]
    priority: Priority = Priority.NORMAL
    tenant: str = ""

    def __post_init__(self) -> None:
        if math.isnan(self.deadline_s):
            raise ValueError(f"deadline_s of sample {self.sample_id} is NaN; use math.inf for no deadline")
        if not self.thresholds or any(map(math.isnan, self.thresholds)):
            raise ValueError(f"thresholds of sample {self.sample_id} are {self.thresholds}; need one number per exit")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """What the engine reports for one sample after a batch.

    ``confidence`` belongs to the exit of the last stage that ran. ``None`` means that this exit was not evaluated: the
    sample goes on and cannot be answered from it (the last stage answers all the same). ``failed`` samples, and those
    whose confidence is not finite, end in ``Fail``.
    """

    sample_id: int
    confidence: float | None
    failed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFinished:
    """A batch came back, with one result for each of its samples, in any order; ``elapsed_s`` is its measured time."""

    batch_id: int
    results: tuple[StageResult, ...]
    elapsed_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleCancelled:
    """The client went away. Ignored for a sample that already has its terminal decision."""

    sample_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Accept nothing more; finish what is here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Time passed; nothing else happened. Send one at ``next_wakeup_s()``."""


Event: TypeAlias = SampleArrived | BatchFinished | SampleCancelled | Drain | Tick

# -- decisions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RunBatch:
    """Run ``num_stages`` consecutive stages, the first being ``stage``, on these samples in one engine call.

    All samples stand at ``stage``. The caller answers with one ``BatchFinished`` of the same ``batch_id``, always,
    also when the engine fails (then every result is ``failed``).
    """

    batch_id: int
    stage: int
    sample_ids: tuple[int, ...]
    num_stages: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """Terminal: answer from the logits of exit ``exit_index``.

    ``degraded`` is True when the deadline, and not the sample's threshold, chose the exit.
    """

    sample_id: int
    exit_index: int
    degraded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """Terminal: no answer. ``retry_after_s`` is the predicted time until the same sample would find room, >= 0."""

    sample_id: int
    reason: RejectReason
    retry_after_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail:
    """Terminal: the engine failed this sample (and only this one)."""

    sample_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Terminal: cancelled. Sent once no batch uses the sample any more: its engine state may be freed."""

    sample_id: int


Decision: TypeAlias = RunBatch | Reply | Reject | Fail | Release


class Scheduler(Protocol):
    """What a driver and the simulator need from any policy."""

    def handle(self, now_s: float, *events: Event) -> list[Decision]:
        """Take events that happened up to ``now_s`` and say what to do, in order.

        Raises:
            ValueError: the caller broke the contract (time ran backwards, an id twice, a batch that is not running).
                State is unchanged by the offending event.
        """
        ...

    def check_invariants(self) -> None:
        """Raise AssertionError with the numbers if a sample was lost, doubled, or stands in two places."""
        ...

    def queued_s(self, now_s: float) -> float:
        """Predicted seconds until everything waiting and running now is done."""
        ...

    def next_wakeup_s(self) -> float | None:
        """When a ``Tick`` would change something, or None."""
        ...
