"""Events that go into a scheduler and decisions that come out of it: one vocabulary for every kind of work.

A *unit* is one image of a request, one clip, one choice of a chat. A *slice* is the work after which the scheduler may
decide anew: an exit stage, a denoising step, a decode, a whole generation. The life of a unit is

    UnitArrived -> waiting -> running a slice -> waiting -> running a slice -> ... -> one terminal decision

and the terminal decision is exactly one of ``Finish``, ``Reject``, ``Fail``, ``Release`` and ``GiveBack``, ever. All
are keyword-only, and frozen for the type checker only (``_message``). Times are seconds on one monotonic clock that the
caller owns.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any, Protocol, TypeAlias, TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field,))
def _message(cls: type[T]) -> type[T]:
    """A dataclass that is frozen for the type checker only: at run time nothing stops an assignment. Dozens of them are
    built in a decision, and one that is really frozen takes more than twice as long to build, since it sets each field
    by a call of ``object.__setattr__``."""
    return dataclass(slots=True, kw_only=True, unsafe_hash=True)(cls)


class Priority(IntEnum):
    """How urgent a unit is relative to others of its tenant; larger is more urgent."""

    LOW = 0
    NORMAL = 1
    HIGH = 2


class RejectReason(Enum):
    """Why a unit was never answered; the value is the stable wire spelling."""

    QUEUE_FULL = "queue_full"
    DEADLINE_PASSED = "deadline_passed"
    DEADLINE_UNREACHABLE = "deadline_unreachable"
    DRAINING = "draining"


# -- events ----------------------------------------------------------------------------------------------------------


@_message
class UnitArrived:
    """A new unit. ``work`` says what is to be done, in the words of the policy that runs it (``schedulers.policies``).

    ``deadline_s`` is absolute on the caller's clock; ``math.inf`` means none. ``held_bytes``: the most that the unit
    holds while it is here. ``batch_key``: units of equal key may share a slice (pictures of one size, clips of one grid
    and attention); one whose key is None runs alone. ``elsewhere_j``: joules that other models served its tenant since
    its last unit came here (``schedulers.elsewhere``).

    Raises:
        ValueError: ``deadline_s`` is not a number, ``held_bytes`` negative, or ``elsewhere_j`` no finite number >= 0.
    """

    unit_id: Hashable
    work: Any
    deadline_s: float = math.inf
    priority: Priority = Priority.NORMAL
    tenant: str = ""
    held_bytes: int = 0
    batch_key: Hashable = ()
    elsewhere_j: float = 0.0

    def __post_init__(self) -> None:
        if math.isnan(self.deadline_s):
            raise ValueError(f"deadline_s of unit {self.unit_id} is NaN; use math.inf for no deadline")
        if self.held_bytes < 0:
            raise ValueError(f"held_bytes of unit {self.unit_id} is {self.held_bytes}; need 0 or more")
        if not 0.0 <= self.elsewhere_j < math.inf:
            raise ValueError(f"elsewhere_j of unit {self.unit_id} is {self.elsewhere_j}; need a finite number >= 0")


@_message
class SliceResult:
    """What a unit has come to; ``report`` is in the words of the policy, and ``failed`` ends in ``Fail``."""

    unit_id: Hashable
    report: Any = None
    failed: bool = False


@_message
class SliceFinished:
    """A slice came back, with one result for each of its units, in any order; ``elapsed_s`` is its measured time."""

    slice_id: int
    results: tuple[SliceResult, ...]
    elapsed_s: float


@_message
class UnitCancelled:
    """Nobody wants the unit any more. Ignored for a unit that already has its terminal decision."""

    unit_id: Hashable


@_message
class Drain:
    """Accept nothing more; finish what is here, or give it back where another replica can go on with it."""


@_message
class Tick:
    """Time passed; nothing else happened. Send one at ``next_wakeup_s()``."""


Event: TypeAlias = UnitArrived | SliceFinished | UnitCancelled | Drain | Tick

# -- decisions -------------------------------------------------------------------------------------------------------


@_message
class RunSlice:
    """Run ``num_stages`` consecutive stages, the first being ``stage``, on these units in one engine call.

    All units stand at ``stage`` and have one batch key; what a stage is, the policy says. The caller answers with one
    ``SliceFinished`` of the same ``slice_id``, always, also when the engine fails (then every result is ``failed``).
    ``predicted_s``: how long it should take.
    """

    slice_id: int
    stage: int
    unit_ids: tuple[Any, ...]
    num_stages: int = 1
    predicted_s: float = field(default=0.0, compare=False)


@_message
class Preempted:
    """Not terminal: the unit had run, and one of its tenant that is more urgent goes on in its place."""

    unit_id: Any


@_message
class Finish:
    """Terminal: answer from what ``stage`` made. ``degraded``: the deadline, and not the unit, chose that stage."""

    unit_id: Any
    stage: int
    degraded: bool = False


@_message
class Reject:
    """Terminal: no answer. ``retry_after_s`` is the predicted time until the same unit would find room, >= 0."""

    unit_id: Any
    reason: RejectReason
    retry_after_s: float


@_message
class Fail:
    """Terminal: the engine failed this unit (and only this one)."""

    unit_id: Any


@_message
class Release:
    """Terminal: cancelled. Sent once no slice uses the unit any more: its engine state may be freed."""

    unit_id: Any


@_message
class GiveBack:
    """Terminal here: this replica stops; snapshot the unit for another one."""

    unit_id: Any


Decision: TypeAlias = RunSlice | Preempted | Finish | Reject | Fail | Release | GiveBack


class Scheduler(Protocol):
    """What a driver and the simulator need; ``schedulers.kernel.Kernel`` is the one implementation."""

    def handle(self, now_s: float, *events: Event) -> list[Decision]:
        """Take events that happened up to ``now_s`` and say what to do, in order.

        Raises:
            ValueError: the caller broke the contract (time ran backwards, an id twice, a slice that is not running).
                State is unchanged by the offending event.
            TypeError: something that is no event.
        """
        ...

    def check_invariants(self) -> None:
        """Raise AssertionError with the numbers if a unit was lost, doubled, or stands in two places."""
        ...

    def queued_s(self, now_s: float) -> float:
        """Predicted seconds until everything waiting and running now is done."""
        ...

    def next_wakeup_s(self) -> float | None:
        """When a ``Tick`` would change something, or None."""
        ...
