"""The one scheduler: time, the table of live units, cancellation, draining, conservation, and how units end.

A kernel knows nothing about models. A ``Policy`` consists of four parts (``schedulers.policy``), which the kernel asks
as it goes along. No part makes a terminal decision, so "exactly one per unit" is implemented once, here.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from schedulers.policy import Policy, Slice, Unit
from schedulers.timers import Timers
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Where the units are. ``arrived`` always equals the sum of the others."""

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
        self._max_waiting = policy.limits.max_waiting
        self._now_s = -math.inf
        self._is_draining = False
        #: Decisions of the current call; kept across an exception, so that none is lost.
        self._out: list[Decision] = []
        #: All units without a terminal decision.
        self._live: dict[Hashable, Unit] = {}
        self._running: dict[int, Slice] = {}
        self._next_slice_id = 0
        #: Number of cancelled units that are still in slices.
        self._num_leaving = 0
        self._timers = Timers()
        #: Units in slices; all other live ones wait.
        self._num_running = 0
        self._num_arrived = self._num_finished = self._num_rejected = 0
        self._num_cancelled = self._num_failed = self._num_given_back = 0

    # -- public ------------------------------------------------------------------------------------------------------

    def handle(self, now_s: float, *events: Event) -> list[Decision]:
        """Take what happened up to ``now_s`` and say what to do, in order.

        Raises:
            ValueError: the caller broke the contract. Events before the offending one took effect, and their decisions
                come with the next call; the offending event and those after it had no effect.
            TypeError: something is not an event; likewise.
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
        """Where all units so far have got to."""
        return Counts(
            arrived=self._num_arrived,
            waiting=len(self._order),
            running=self._num_running,
            finished=self._num_finished,
            rejected=self._num_rejected,
            cancelled=self._num_cancelled,
            failed=self._num_failed,
            given_back=self._num_given_back,
        )

    def check_invariants(self) -> None:
        """Raise AssertionError with the numbers unless every unit is in exactly one place. O(live units)."""
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
        """Predicted seconds until everything that is waiting or running is done."""
        return self._cost.queued_s(now_s, self._running.values())

    def remaining_s(self, unit_id: Hashable) -> float:
        """Predicted seconds that a unit still needs when it runs alone; 0 if it has ended or is unknown."""
        unit = self._live.get(unit_id)
        return self._cost.remaining_s(unit) if unit is not None else 0.0

    def room(self) -> int:
        """How many more units may come: by number, and by bytes if each held as much as the largest unit here."""
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
        timer_s = self._timers.next_s()
        batch_s = self._batch.wakeup_s(self._now_s, self._running.values())
        if timer_s is None:
            return batch_s
        timer_s = max(timer_s, self._now_s)
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
        latest_s = unit.deadline_s - self._cost.lead_s(unit.stage) * unit.size
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
                    self._timers.set(unit, latest_s)

    def _has_room_for(self, unit: Unit) -> bool:
        """Whether the unit may wait. Makes room if need be, by refusing one unit, perhaps this one."""
        if len(self._live) - self._num_running <= self._max_waiting:  # the unit is among the live ones
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
        results = event.results
        ids = [result.unit_id for result in results]
        in_order = ids == list(ended.units)
        if not in_order and (len(ids) != len(ended.units) or set(ids) != ended.units.keys()):
            raise ValueError(f"slice {event.slice_id} has {len(ended.units)} units; got other ones in its results")
        if not 0.0 <= event.elapsed_s < math.inf:
            raise ValueError(f"elapsed_s is {event.elapsed_s}; need a finite number >= 0")
        del self._running[event.slice_id]
        self._num_running -= len(ids)
        units = list(ended.units.values()) if in_order else [ended.units[unit_id] for unit_id in ids]
        ended.elapsed_s = event.elapsed_s
        has_failed = True in [result.failed for result in results]
        if not has_failed:
            self._cost.observe(ended, event.elapsed_s)
        if has_failed or self._num_leaving:
            units, reports = self._end_unwanted(ended, units, results)
            if not units:
                return
        else:
            reports = [result.report for result in results]
        done, failed, onward = self._progress.after(ended, units, reports)
        if done:
            self._finish(done, ended.stage + ended.num_stages - 1, False)
        for unit in failed:
            self._fail(unit)
        if onward:
            self._wait_again(onward)

    def _end_unwanted(
        self, ended: Slice, units: list[Unit], results: tuple[SliceResult, ...]
    ) -> tuple[list[Unit], list[Any]]:
        """End the units that were cancelled or failed; return the others with their reports."""
        wanted, reports = [], []
        for unit, result in zip(units, results, strict=True):
            if unit.is_cancelled or result.failed:
                self._progress.dropped(ended, unit, result.report)
            if unit.is_cancelled:
                self._num_leaving -= 1
                self._release(unit)
            elif result.failed:
                self._fail(unit)
            else:
                wanted.append(unit)
                reports.append(result.report)
        return wanted, reports

    def _wait_again(self, units: list[Unit]) -> None:
        """Let units wait for another slice, except those that have no time left or go to another replica."""
        now_s, progress = self._now_s, self._progress
        if self._is_draining and progress.hands_over:
            for unit in units:
                if not progress.nears_end(unit):
                    self._give_back(unit)
            units = [unit for unit in units if progress.nears_end(unit)]
            if not units:
                return
        lead_s = self._cost.lead_s(units[0].stage)
        waiting = []
        for unit in units:
            latest_s = unit.deadline_s - lead_s * unit.size
            if latest_s < now_s:
                self._give_up(unit)
                continue
            unit.is_waiting = True
            unit.waiting_since_s = now_s
            waiting.append(unit)
            if latest_s < unit.timer_s:
                self._timers.set(unit, latest_s)
        if waiting:
            self._order.add_again(waiting)

    # -- deadlines ---------------------------------------------------------------------------------------------------

    def _expire(self) -> None:
        for unit in self._timers.due(self._now_s, self._live.values()):
            if not unit.is_waiting:
                continue
            latest_s = unit.deadline_s - self._cost.lead_s(unit.stage) * unit.size
            if latest_s <= self._now_s:
                self._order.remove(unit)
                self._give_up(unit)
            else:
                self._timers.set(unit, latest_s)

    def _give_up(self, unit: Unit) -> None:
        """More slices cannot meet the deadline: answer from a stage already passed, or reject."""
        stage = self._progress.overtaken(unit)
        if stage is not None:
            self._finish([unit], stage, True)
        elif unit.deadline_s <= self._now_s:
            self._reject(unit, RejectReason.DEADLINE_PASSED)
        else:
            self._reject(unit, RejectReason.DEADLINE_UNREACHABLE)

    # -- slices ------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        running = self._running
        while True:
            pick = self._batch.next(self._now_s, running.values())
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
            self._num_running += len(units)
            slice_id = self._next_slice_id
            self._next_slice_id += 1
            running[slice_id] = Slice(stage, num_stages, members, self._now_s, predicted_s)
            ids = tuple(members)
            self._out.append(
                RunSlice(slice_id=slice_id, stage=stage, unit_ids=ids, num_stages=num_stages, predicted_s=predicted_s)
            )

    # -- terminal decisions: the only places where a unit ends ---------------------------------------------------------

    def _end(self, unit: Unit) -> None:
        unit.is_waiting = False
        del self._live[unit.unit_id]

    def _finish(self, units: list[Unit], stage: int, degraded: bool) -> None:
        live = self._live
        out = self._out
        for unit in units:  # _end, without its call
            unit.is_waiting = False
            unit_id = unit.unit_id
            del live[unit_id]
            out.append(Finish(unit_id=unit_id, stage=stage, degraded=degraded))
        self._num_finished += len(units)

    def _reject(self, unit: Unit, reason: RejectReason) -> None:
        self._end(unit)
        self._num_rejected += 1
        # A draining replica will never take it; another one can at once.
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
