"""What a policy consists of: four parts, which the kernel asks as it goes along, and what they are told and say.

    order       who waits, and who is given up when there is no room
    batch       which of them run together next
    cost        what a slice takes; learns from what slices took
    progress    what has become of a unit after a slice

No part can end a unit; only the kernel (``schedulers.kernel``) does.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from schedulers.types import UnitArrived


class Unit:
    """One live unit. The kernel owns it; a policy only changes ``stage``, ``answer_stage``, ``rank``, ``state``,
    ``elsewhere_j`` and, while the unit is not in the order, ``batch_key`` and ``due_s``."""

    __slots__ = (
        "answer_stage",
        "arrived_s",
        "batch_key",
        "deadline_s",
        "due_s",
        "elsewhere_j",
        "held_bytes",
        "is_cancelled",
        "is_waiting",
        "joules",
        "number",
        "priority",
        "rank",
        "size",
        "stage",
        "state",
        "tenant",
        "timer_s",
        "unit_id",
        "waiting_since_s",
        "work",
    )

    def __init__(self, arrival: UnitArrived, now_s: float, number: int) -> None:
        self.unit_id = arrival.unit_id
        self.work = arrival.work
        self.deadline_s = arrival.deadline_s
        #: When it should be done, to those who order by it: its deadline, or sooner.
        self.due_s = arrival.deadline_s
        self.priority = arrival.priority
        #: Among the units of a tenant, the smallest goes first; ``number`` breaks ties.
        self.rank = (float(-arrival.priority), arrival.deadline_s)
        self.tenant = arrival.tenant
        self.held_bytes = arrival.held_bytes
        self.batch_key = arrival.batch_key
        self.elsewhere_j = arrival.elsewhere_j
        self.arrived_s = now_s
        #: When it began to wait where it is now.
        self.waiting_since_s = now_s
        #: Arrival number, unique: breaks ties wherever units are ordered.
        self.number = number
        #: What its tenant is charged when the unit is taken out of a fair queue.
        self.joules = 0.0
        #: Its work beside that of a usual unit of its kind.
        self.size = 1.0
        #: The next stage to run, or the one that is running.
        self.stage = 0
        #: The deepest stage that can answer for it; None before there is one.
        self.answer_stage: int | None = None
        #: Whatever the policy keeps with it.
        self.state: Any = None
        #: True while in the order; False in a slice and after the terminal decision.
        self.is_waiting = False
        self.is_cancelled = False
        #: The earliest timer set for this unit; ``inf`` when there is none.
        self.timer_s = math.inf


class Slice:
    """What an executor is running."""

    __slots__ = ("elapsed_s", "num_stages", "predicted_s", "stage", "started_s", "units", "work")

    def __init__(self, stage: int, num_stages: int, units: dict[Hashable, Unit], started_s: float, predicted_s: float):
        self.stage = stage
        self.num_stages = num_stages
        self.units = units
        self.started_s = started_s
        self.predicted_s = predicted_s
        #: Measured, once it has ended.
        self.elapsed_s = 0.0
        #: Of its units, in usual ones; 0 until somebody has added it up.
        self.work = 0.0


class Pick(NamedTuple):
    """What to run next: ``units``, taken out of the order, the stages that they run, and how long that will take.

    ``late`` units were taken out as well and cannot be answered in time; ``preempted`` units go on waiting. Without
    ``units``, nothing runs and the kernel asks again.
    """

    units: list[Unit]
    stage: int
    num_stages: int
    predicted_s: float
    late: list[Unit] = []  # noqa: RUF012 - never changed
    preempted: list[Unit] = []  # noqa: RUF012 - never changed


class After(NamedTuple):
    """Units after a slice: those that are done, those whose result is unusable, and those that need another slice."""

    done: list[Unit]
    failed: list[Unit]
    onward: list[Unit]


class Order(Protocol):
    """Who waits. Iterating yields every waiting unit."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Unit]: ...

    def add(self, unit: Unit) -> None:
        """Let a new unit wait."""
        ...

    def add_again(self, units: list[Unit]) -> None:
        """Let units wait for another slice, all at the same stage."""
        ...

    def remove(self, unit: Unit) -> None:
        """Remove a unit from wherever it is."""
        ...

    def rest(self) -> None:
        """Called when no unit is left, waiting or running."""
        ...

    def victim(self, newcomer: Unit) -> Unit | None:
        """The unit to give up when there is no room; None if that is the newcomer, which does not wait yet."""
        ...


class Batch(Protocol):
    """What runs next."""

    def next(self, now_s: float, running: Collection[Slice]) -> Pick | None:
        """Take the units of a slice that starts now out of the order; None if none should start, or nobody waits."""
        ...

    def wakeup_s(self, now_s: float, running: Collection[Slice]) -> float | None:
        """When ``next`` will give another answer although nothing happened; None: never."""
        ...


class Cost(Protocol):
    """What work costs."""

    def joules(self, unit: Unit) -> float:
        """What a new unit is charged."""
        ...

    def lead_s(self, stage: int) -> float:
        """How long before its deadline a usual unit that waits at ``stage`` is given up; ``-inf``: never."""
        ...

    def remaining_s(self, unit: Unit) -> float:
        """Seconds that a unit still needs when it runs alone."""
        ...

    def queued_s(self, now_s: float, running: Collection[Slice]) -> float:
        """Seconds until everything that is waiting or running is done."""
        ...

    def pass_time(self, now_s: float) -> None:
        """It is now ``now_s``; called before anything that happened by then."""
        ...

    def observe(self, ended: Slice, elapsed_s: float) -> None:
        """A slice took ``elapsed_s``, and none of its units failed."""
        ...


class Progress(Protocol):
    """What has become of units."""

    #: True: a replica that stops gives units back for another replica to continue. False: it finishes them.
    hands_over: bool

    def admit(self, unit: Unit) -> None:
        """Check a new unit before it waits. Raises ValueError: its work does not fit."""
        ...

    def after(self, ended: Slice, units: list[Unit], reports: list[Any]) -> After:
        """Sort ``units`` of a slice by what it reported about each; those that go on get their next ``stage``."""
        ...

    def dropped(self, ended: Slice, unit: Unit, report: Any) -> None:
        """A unit of a slice was cancelled, or the engine failed it (``report`` is None): nothing follows."""
        ...

    def overtaken(self, unit: Unit) -> int | None:
        """The stage that answers for a unit that cannot go on in time; None if there is none."""
        ...

    def nears_end(self, unit: Unit) -> bool:
        """Whether a replica that hands units over finishes this one anyway."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one replica takes.

    ``max_waiting``: units that may wait before room must be made for a new one. ``max_running``: units in slices.
    ``max_units`` and ``max_held_bytes`` are what ``Kernel.room`` goes by.

    Raises:
        ValueError: one is below 1.
    """

    max_waiting: int = 1024
    max_running: int = 32
    max_units: int = 1 << 30
    max_held_bytes: int = 1 << 62

    def __post_init__(self) -> None:
        for name in ("max_waiting", "max_running", "max_units", "max_held_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; need at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How one kind of work is scheduled."""

    order: Order
    batch: Batch
    cost: Cost
    progress: Progress
    limits: Limits = field(default_factory=Limits)
