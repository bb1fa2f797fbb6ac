"""The one scheduler: time, the table of live units, cancellation, draining, conservation, and how units end.

A kernel knows nothing of models. A ``Policy`` is put together from four parts, and the kernel asks each at its time:

    order       who waits, and who has to go when there is no room
    batch       which of them run next, together
    cost        what a slice takes; learns from what it took
    progress    what a unit has come to after a slice

No part makes a terminal decision, so that "exactly one per unit" is written once, here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Any, NamedTuple, Protocol

from schedulers.types import (
    Decision,
    Drain,
    Event,
    Fail,
    Finish,
    GiveBack,
    Preempted,
    Reject,
    RejectReason,
    Release,
    RunSlice,
    SliceFinished,
    SliceResult,
    Tick,
    UnitArrived,
    UnitCancelled,
)

#: Timers of units that are gone are swept out when they outnumber the live ones by this much.
_MAX_STALE_TIMERS = 4096


class Unit:
    """One live unit. The kernel owns it; a policy changes ``stage``, ``answer_stage``, ``rank`` and ``state`` only."""

    __slots__ = (
        "answer_stage",
        "arrived_s",
        "deadline_s",
        "held_bytes",
        "is_cancelled",
        "is_waiting",
        "joules",
        "number",
        "priority",
        "rank",
        "stage",
        "state",
        "tenant",
        "timer_s",
        "unit_id",
        "waiting_since_s",
        "weight",
        "work",
    )

    def __init__(self, arrival: UnitArrived, now_s: float, number: int) -> None:
        self.unit_id = arrival.unit_id
        self.work = arrival.work
        self.deadline_s = arrival.deadline_s
        self.priority = arrival.priority
        #: Among the units of its tenant the smallest goes first; ``number`` decides between equals.
        self.rank = (float(-arrival.priority), arrival.deadline_s)
        self.tenant = arrival.tenant
        self.weight = arrival.weight
        self.held_bytes = arrival.held_bytes
        self.arrived_s = now_s
        #: When it began to wait where it stands.
        self.waiting_since_s = now_s
        #: Arrival number, unique: breaks ties wherever units are ordered.
        self.number = number
        #: What its tenant is charged when it is taken out of a fair queue.
        self.joules = 0.0
        #: Next stage to run, or the one that runs now.
        self.stage = 0
        #: Deepest stage that can answer for it, None before the first.
        self.answer_stage: int | None = None
        #: Whatever the policy keeps beside it.
        self.state: Any = None
        #: True while in the order; False in a slice and after the terminal decision.
        self.is_waiting = False
        self.is_cancelled = False
        #: Earliest timer set for this unit, ``inf`` when there is none.
        self.timer_s = math.inf


class Slice:
    """What an executor runs now."""

    __slots__ = ("num_stages", "predicted_s", "stage", "started_s", "units")

    def __init__(self, stage: int, num_stages: int, units: dict[Hashable, Unit], started_s: float, predicted_s: float):
        self.stage = stage
        self.num_stages = num_stages
        self.units = units
        self.started_s = started_s
        self.predicted_s = predicted_s


class Pick(NamedTuple):
    """What to run next: ``units``, taken out of the order, and the stages that they run, in so many seconds.

    ``late`` were taken out as well and cannot be answered in time; ``preempted`` wait on. Without ``units`` nothing
    runs, and the kernel asks again.
    """

    units: list[Unit]
    stage: int
    num_stages: int
    predicted_s: float
    late: list[Unit] = []  # noqa: RUF012 - never changed
    preempted: list[Unit] = []  # noqa: RUF012 - never changed


class After(NamedTuple):
    """Units after a slice: those that are done, those whose result is unusable, those that need another slice."""

    done: list[Unit]
    failed: list[Unit]
    onward: list[Unit]


class Order(Protocol):
    """Who waits. Iterates over all of them."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Unit]: ...

    def add(self, unit: Unit) -> None:
        """A new unit waits."""
        ...

    def add_again(self, units: list[Unit]) -> None:
        """Units wait for another slice, at one stage."""
        ...

    def remove(self, unit: Unit) -> None:
        """Take one out from wherever it is."""
        ...

    def rest(self) -> None:
        """No unit is left, waiting or running."""
        ...

    def victim(self, newcomer: Unit) -> Unit | None:
        """There is no room: the unit that goes to make some; None when that is the newcomer, who does not wait yet."""
        ...


class Batch(Protocol):
    """What runs next."""

    def next(self, now_s: float, running: Collection[Slice]) -> Pick | None:
        """Take the units of a slice that starts now out of the order; None when none should."""
        ...

    def wakeup_s(self, now_s: float, running: Collection[Slice]) -> float | None:
        """When ``next`` will say something else although nothing happened; None: never."""
        ...


class Cost(Protocol):
    """What work takes."""

    def joules(self, unit: Unit) -> float:
        """What a new unit is charged."""
        ...

    def lead_s(self, stage: int) -> float:
        """A unit that waits at ``stage`` is given up so long before its deadline; ``-inf`` if it never is."""
        ...

    def remaining_s(self, unit: Unit) -> float:
        """Seconds that a unit still needs, alone."""
        ...

    def queued_s(self, now_s: float, running: Collection[Slice]) -> float:
        """Seconds until everything that waits and runs is done."""
        ...

    def pass_time(self, now_s: float) -> None:
        """Time has come to ``now_s``; said before anything that happened by then."""
        ...

    def observe(self, ended: Slice, elapsed_s: float) -> None:
        """A slice took that long, and none of its units failed."""
        ...


class Progress(Protocol):
    """What units have come to."""

    #: A replica that stops gives units back, for another one to go on with; else it finishes them.
    hands_over: bool

    def admit(self, unit: Unit) -> None:
        """A new unit, before it waits. Raises ValueError: its work does not fit."""
        ...

    def after(self, ended: Slice, reports: list[tuple[Unit, Any]]) -> After:
        """Sort units by what a slice reported of them; those that go on get their next ``stage``."""
        ...

    def overtaken(self, unit: Unit) -> int | None:
        """The unit cannot go on in time: the stage that answers for it, None when there is none."""
        ...

    def nears_end(self, unit: Unit) -> bool:
        """Whether a replica that hands units over finishes this one all the same."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one replica takes. ``max_units`` and ``max_held_bytes`` are what ``Kernel.room`` goes by.

    ``max_waiting``: units that wait before a new one needs room. ``max_running``: units in slices.

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Where the units are: ``arrived`` equals the sum of the others, always."""

    arrived: int
    waiting: int
    running: int
    finished: int
    rejected: int
    cancelled: int
    failed: int
    given_back: int


class Kernel:
    """Runs a policy. See ``schedulers.types.Scheduler`` for the contract of the public methods."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._order, self._batch = policy.order, policy.batch
        self._cost, self._progress = policy.cost, policy.progress
        self._now_s = -math.inf
        self._is_draining = False
        #: Decisions of the current call; kept over an exception, so that none is lost.
        self._out: list[Decision] = []
        #: All units without a terminal decision.
        self._live: dict[Hashable, Unit] = {}
        self._running: dict[int, Slice] = {}
        self._next_slice_id = 0
        #: Units in slices that were cancelled.
        self._num_leaving = 0
        #: (when, tie-break, unit); a unit may have several or stale ones, at most one is needed.
        self._timers: list[tuple[float, int, Unit]] = []
        self._num_arrived = self._num_finished = self._num_rejected = 0
        self._num_cancelled = self._num_failed = self._num_given_back = 0

    # -- public ------------------------------------------------------------------------------------------------------

    def handle(self, now_s: float, *events: Event) -> list[Decision]:
        """Take what happened up to ``now_s`` and say what to do, in order.

        Raises:
            ValueError: the caller broke the contract. Events before the offending one took effect, and their decisions
                come with the next call; the offending event and those after it did not.
            TypeError: something that is no event; likewise.
        """
        if not self._now_s <= now_s < math.inf:
            raise ValueError(f"now_s is {now_s} after {self._now_s}; time must be finite and not run backwards")
        self._now_s = now_s
        self._cost.pass_time(now_s)
        for event in events:
            self._take(event)
        self._expire()
        self._start()
        if not self._live:
            self._order.rest()
        decisions, self._out = self._out, []
        return decisions

    def counts(self) -> Counts:
        """Where all units so far are."""
        return Counts(
            arrived=self._num_arrived,
            waiting=len(self._order),
            running=sum(len(one.units) for one in self._running.values()),
            finished=self._num_finished,
            rejected=self._num_rejected,
            cancelled=self._num_cancelled,
            failed=self._num_failed,
            given_back=self._num_given_back,
        )

    def check_invariants(self) -> None:
        """Raise AssertionError, with the numbers, unless every unit is in exactly one place. O(live units)."""
        counts = self.counts()
        ended = counts.finished + counts.rejected + counts.cancelled + counts.failed + counts.given_back
        if counts.arrived != counts.waiting + counts.running + ended:
            raise AssertionError(f"arrived != waiting + running + those that ended: {counts}")
        waiting = [unit.unit_id for unit in self._order]
        places = waiting + [unit_id for one in self._running.values() for unit_id in one.units]
        if len(waiting) != counts.waiting or len(set(places)) != len(places) or set(places) != self._live.keys():
            raise AssertionError(
                f"{len(places)} places, {len(set(places))} different, for {len(self._live)} live units: {counts}"
            )
        if any(not self._live[unit_id].is_waiting for unit_id in waiting):
            raise AssertionError("a unit in the order is marked as running")
        limits = self.policy.limits
        if counts.running > limits.max_running:
            raise AssertionError(f"{counts.running} running; limit is {limits.max_running}")
        if counts.waiting > limits.max_waiting + limits.max_running:
            raise AssertionError(f"{counts.waiting} waiting; limit is {limits.max_waiting} and those that run")

    def queued_s(self, now_s: float) -> float:
        """Predicted seconds until everything that waits and runs is done."""
        return self._cost.queued_s(now_s, self._running.values())

    def remaining_s(self, unit_id: Hashable) -> float:
        """Predicted seconds that a unit still needs, alone; 0 for one that is over or unknown."""
        unit = self._live.get(unit_id)
        return self._cost.remaining_s(unit) if unit is not None else 0.0

    def room(self) -> int:
        """How many units more may come: by number, and by the bytes that the largest unit here holds."""
        if self._is_draining:
            return 0
        limits = self.policy.limits
        room = limits.max_units - len(self._live)
        held = [unit.held_bytes for unit in self._live.values()]
        if held and max(held) > 0:
            room = min(room, (limits.max_held_bytes - sum(held)) // max(held))
        return max(0, room)

    def next_wakeup_s(self) -> float | None:
        """When a ``Tick`` would change something, or None."""
        timers = self._timers
        while timers and not timers[0][2].is_waiting:
            heappop(timers)[2].timer_s = math.inf
        batch_s = self._batch.wakeup_s(self._now_s, self._running.values())
        if not timers:
            return batch_s
        timer_s = max(timers[0][0], self._now_s)
        return timer_s if batch_s is None else min(timer_s, batch_s)

    @property
    def is_drained(self) -> bool:
        """True once a ``Drain`` was seen and no unit is left."""
        return self._is_draining and not self._live

    # -- events ------------------------------------------------------------------------------------------------------

    def _take(self, event: Event) -> None:
        if isinstance(event, SliceFinished):
            self._on_finished(event)
        elif isinstance(event, UnitArrived):
            self._on_arrived(event)
        elif isinstance(event, UnitCancelled):
            self._on_cancelled(event.unit_id)
        elif isinstance(event, Drain):
            self._on_drain()
        elif not isinstance(event, Tick):
            raise TypeError(f"{event!r} is no event of a scheduler")

    def _on_arrived(self, event: UnitArrived) -> None:
        if event.unit_id in self._live:
            raise ValueError(f"unit {event.unit_id} arrived twice; ids of live units must differ")
        unit = Unit(event, self._now_s, self._num_arrived + 1)
        self._progress.admit(unit)
        self._num_arrived += 1
        self._live[event.unit_id] = unit
        latest_s = unit.deadline_s - self._cost.lead_s(unit.stage)
        if self._is_draining:
            if self._progress.hands_over:
                self._give_back(unit)
            else:
                self._reject(unit, RejectReason.DRAINING)
        elif latest_s < self._now_s or latest_s == self._now_s == unit.deadline_s:
            self._give_up(unit)
        else:
            unit.joules = self._cost.joules(unit)
            if self._has_room_for(unit):
                unit.is_waiting = True
                self._order.add(unit)
                if latest_s < math.inf:
                    self._set_timer(unit, latest_s)

    def _has_room_for(self, unit: Unit) -> bool:
        """Makes room if need be; one unit is refused then, perhaps this one."""
        if len(self._order) < self.policy.limits.max_waiting:
            return True
        victim = self._order.victim(unit)
        if victim is not None:
            self._order.remove(victim)
        self._reject(victim or unit, RejectReason.QUEUE_FULL)
        return victim is not None

    def _on_cancelled(self, unit_id: Hashable) -> None:
        unit = self._live.get(unit_id)
        if unit is None:
            return
        if unit.is_waiting:
            self._order.remove(unit)
            self._release(unit)
        elif not unit.is_cancelled:
            unit.is_cancelled = True
            self._num_leaving += 1

    def _on_drain(self) -> None:
        self._is_draining = True
        if self._progress.hands_over:
            for unit in [unit for unit in self._order if not self._progress.nears_end(unit)]:
                self._order.remove(unit)
                self._give_back(unit)

    def _on_finished(self, event: SliceFinished) -> None:
        ended = self._running.get(event.slice_id)
        if ended is None:
            raise ValueError(f"slice {event.slice_id} is not running; running: {sorted(self._running)}")
        units, results = ended.units, event.results
        if len(results) != len(units) or {result.unit_id for result in results} != units.keys():
            raise ValueError(f"slice {event.slice_id} has {len(units)} units; got other ones in its results")
        if not 0.0 <= event.elapsed_s < math.inf:
            raise ValueError(f"elapsed_s is {event.elapsed_s}; need a finite number >= 0")
        del self._running[event.slice_id]
        has_failed = True in [result.failed for result in results]
        if not has_failed:
            self._cost.observe(ended, event.elapsed_s)
        if has_failed or self._num_leaving:
            reports = self._end_unwanted(units, results)
            if not reports:
                return
        else:
            reports = [(units[result.unit_id], result.report) for result in results]
        done, failed, onward = self._progress.after(ended, reports)
        if done:
            self._finish(done, ended.stage + ended.num_stages - 1, False)
        for unit in failed:
            self._fail(unit)
        if onward:
            self._wait_again(onward)

    def _end_unwanted(self, units: dict[Hashable, Unit], results: tuple[SliceResult, ...]) -> list[tuple[Unit, Any]]:
        """End the units that were cancelled and those that failed; returns the others with their reports."""
        reports = []
        for result in results:
            unit = units[result.unit_id]
            if unit.is_cancelled:
                self._num_leaving -= 1
                self._release(unit)
            elif result.failed:
                self._fail(unit)
            else:
                reports.append((unit, result.report))
        return reports

    def _wait_again(self, units: list[Unit]) -> None:
        """Units that need another slice wait for it, but for those that have no time left or go elsewhere."""
        now_s, progress = self._now_s, self._progress
        if self._is_draining and progress.hands_over:
            for unit in units:
                if not progress.nears_end(unit):
                    self._give_back(unit)
            units = [unit for unit in units if progress.nears_end(unit)]
            if not units:
                return
        lead_s = self._cost.lead_s(units[0].stage)
        soonest_s = now_s + lead_s
        waiting = []
        for unit in units:
            if unit.deadline_s < soonest_s:
                self._give_up(unit)
                continue
            unit.is_waiting = True
            unit.waiting_since_s = now_s
            waiting.append(unit)
            if unit.deadline_s - lead_s < unit.timer_s:
                self._set_timer(unit, unit.deadline_s - lead_s)
        if waiting:
            self._order.add_again(waiting)

    # -- deadlines ---------------------------------------------------------------------------------------------------

    def _set_timer(self, unit: Unit, when_s: float) -> None:
        """Make sure that ``_expire`` looks at this waiting unit then."""
        if when_s < unit.timer_s:
            unit.timer_s = when_s
            heappush(self._timers, (when_s, unit.number, unit))

    def _expire(self) -> None:
        """Give up what has waited too long."""
        timers, now_s = self._timers, self._now_s
        while timers and timers[0][0] <= now_s:
            unit = heappop(timers)[2]
            unit.timer_s = math.inf
            if not unit.is_waiting:
                continue
            latest_s = unit.deadline_s - self._cost.lead_s(unit.stage)
            if latest_s <= now_s:
                self._order.remove(unit)
                self._give_up(unit)
            else:
                self._set_timer(unit, latest_s)
        if len(timers) > 2 * len(self._live) + _MAX_STALE_TIMERS:
            self._sweep_timers()

    def _sweep_timers(self) -> None:
        self._timers = [timer for timer in self._timers if timer[2].is_waiting and timer[0] == timer[2].timer_s]
        heapify(self._timers)
        for unit in self._live.values():
            if not unit.is_waiting:  # it gets a new one when it waits again
                unit.timer_s = math.inf

    def _give_up(self, unit: Unit) -> None:
        """The deadline cannot be met by running more: answer from a stage already passed, or reject."""
        stage = self._progress.overtaken(unit)
        if stage is not None:
            self._finish([unit], stage, True)
        elif unit.deadline_s <= self._now_s:
            self._reject(unit, RejectReason.DEADLINE_PASSED)
        else:
            self._reject(unit, RejectReason.DEADLINE_UNREACHABLE)

    # -- slices ------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        running, order, batch = self._running, self._order, self._batch
        while len(order):
            pick = batch.next(self._now_s, running.values())
            if pick is None:
                return
            units, stage, num_stages, predicted_s, late, preempted = pick
            for unit in late:
                self._give_up(unit)
            for unit in preempted:
                self._out.append(Preempted(unit_id=unit.unit_id))
            if not units:
                continue
            members: dict[Hashable, Unit] = {}
            for unit in units:
                unit.is_waiting = False
                members[unit.unit_id] = unit
            slice_id = self._next_slice_id
            self._next_slice_id += 1
            running[slice_id] = Slice(stage, num_stages, members, self._now_s, predicted_s)
            self._out.append(RunSlice(slice_id=slice_id, stage=stage, unit_ids=tuple(members), num_stages=num_stages))

    # -- terminal decisions: the only places where a unit ends ---------------------------------------------------------

    def _end(self, unit: Unit) -> None:
        unit.is_waiting = False
        del self._live[unit.unit_id]

    def _finish(self, units: list[Unit], stage: int, degraded: bool) -> None:
        live = self._live
        for unit in units:  # _end, without its call
            unit.is_waiting = False
            del live[unit.unit_id]
        self._num_finished += len(units)
        self._out += [Finish(unit_id=unit.unit_id, stage=stage, degraded=degraded) for unit in units]

    def _reject(self, unit: Unit, reason: RejectReason) -> None:
        self._end(unit)
        self._num_rejected += 1
        # A draining replica never takes it, another one can at once.
        retry_after_s = 0.0 if reason is RejectReason.DRAINING else self.queued_s(self._now_s)
        self._out.append(Reject(unit_id=unit.unit_id, reason=reason, retry_after_s=retry_after_s))

    def _fail(self, unit: Unit) -> None:
        self._end(unit)
        self._num_failed += 1
        self._out.append(Fail(unit_id=unit.unit_id))

    def _release(self, unit: Unit) -> None:
        self._end(unit)
        self._num_cancelled += 1
        self._out.append(Release(unit_id=unit.unit_id))

    def _give_back(self, unit: Unit) -> None:
        self._end(unit)
        self._num_given_back += 1
        self._out.append(GiveBack(unit_id=unit.unit_id))
