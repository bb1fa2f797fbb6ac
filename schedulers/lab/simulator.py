"""Replays traces through schedulers on a virtual clock: no engine, no waiting, the same answer every time.

Any policy, and several families at once on one clock: each replica has a scheduler, a trace and a *world*, which knows
what is true of its units (how long slices take, what they report).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from random import Random
from typing import Any, Protocol, TypeAlias

from schedulers.policies.exits import ExitWork
from schedulers.types import (
    Decision,
    Drain,
    Event,
    Fail,
    Finish,
    GiveBack,
    Preempted,
    Priority,
    Reject,
    Release,
    RunSlice,
    Scheduler,
    SliceFinished,
    SliceResult,
    Tick,
    UnitArrived,
    UnitCancelled,
)

#: True seconds of (stage, number of units).
BatchCost: TypeAlias = Callable[[int, int], float]
End: TypeAlias = Finish | Reject | Fail | Release | GiveBack
#: A policy that asks to be woken this often without time moving on is stuck.
_MAX_IDLE_WAKEUPS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceUnit:
    """One unit of a trace: when it comes, what it wants, and what is true of it, in the words of its world.

    ``fails_at_stage``: the engine fails it there. Times are seconds from the start of the trace; ``cancelled_at_s`` may
    be before, during or after its service.
    """

    arrived_s: float
    work: Any
    truth: Any = None
    deadline_s: float = math.inf
    tenant: str = ""
    priority: Priority = Priority.NORMAL
    held_bytes: int = 0
    batch_key: Hashable = ()
    cancelled_at_s: float | None = None
    fails_at_stage: int | None = None


class World(Protocol):
    """What an engine would do."""

    def slice_s(self, stage: int, num_stages: int, units: Sequence[TraceUnit]) -> float:
        """True seconds of a slice."""
        ...

    def report(self, unit: TraceUnit, stage: int) -> Any:
        """What a slice that ended with ``stage`` reports of a unit."""
        ...


@dataclass(frozen=True, slots=True)
class ExitWorld:
    """A network with early exits; the truth of a unit is its confidence at each exit (``exit_unit``)."""

    batch_cost: BatchCost

    def slice_s(self, stage: int, num_stages: int, units: Sequence[TraceUnit]) -> float:
        """All of its stages."""
        return sum(self.batch_cost(s, len(units)) for s in range(stage, stage + num_stages))

    def report(self, unit: TraceUnit, stage: int) -> float:
        """The confidence there."""
        confidence: float = unit.truth[stage]
        return confidence


def exit_unit(
    arrived_s: float, deadline_s: float, thresholds: tuple[float, ...], confidences: tuple[float, ...], **more: Any
) -> TraceUnit:
    """A unit for an ``ExitWorld``."""
    return TraceUnit(arrived_s=arrived_s, deadline_s=deadline_s, work=ExitWork(thresholds), truth=confidences, **more)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What became of one unit. ``cost_s`` is its share of the engine time of every slice that it was in."""

    unit_id: int
    tenant: str
    arrived_s: float
    deadline_s: float
    done_s: float
    decision: End
    cost_s: float

    @property
    def latency_s(self) -> float:
        """Arrival to terminal decision."""
        return self.done_s - self.arrived_s

    @property
    def is_good(self) -> bool:
        """Answered by its deadline, at a stage that the unit itself chose."""
        return isinstance(self.decision, Finish) and not self.decision.degraded and self.done_s <= self.deadline_s


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceRecord:
    """One slice that ran."""

    stage: int
    num_stages: int
    num_units: int
    started_s: float
    elapsed_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A run in numbers. Percentiles are over replies, in seconds, None without replies; shares are of all units."""

    num_units: int
    good_share: float
    degraded_share: float
    late_share: float
    rejected_share: float
    goodput_per_s: float
    mean_latency_s: float | None
    p50_latency_s: float | None
    p99_latency_s: float | None
    mean_cost_s: float
    utilisation: float
    mean_batch_by_stage: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """Everything that happened: one record per unit, by unit id; slices by start."""

    records: tuple[Record, ...]
    slices: tuple[SliceRecord, ...]
    duration_s: float

    def report(self) -> Report:
        """Summarise."""
        total = len(self.records)
        replies = [r for r in self.records if isinstance(r.decision, Finish)]
        latencies = sorted(r.latency_s for r in replies)
        good = sum(r.is_good for r in self.records)
        busy_s = sum(b.elapsed_s for b in self.slices)
        return Report(
            num_units=total,
            good_share=good / max(total, 1),
            degraded_share=sum(isinstance(r.decision, Finish) and r.decision.degraded for r in replies) / max(total, 1),
            late_share=sum(r.done_s > r.deadline_s for r in replies) / max(total, 1),
            rejected_share=sum(isinstance(r.decision, Reject) for r in self.records) / max(total, 1),
            goodput_per_s=good / self.duration_s if self.duration_s > 0 else 0.0,
            mean_latency_s=sum(latencies) / len(latencies) if latencies else None,
            p50_latency_s=percentile(latencies, 0.50),
            p99_latency_s=percentile(latencies, 0.99),
            mean_cost_s=sum(r.cost_s for r in self.records) / max(total, 1),
            utilisation=busy_s / self.duration_s if self.duration_s > 0 else 0.0,
            mean_batch_by_stage=self._mean_batches(),
        )

    def batch_sizes(self) -> dict[int, Counter[int]]:
        """First stage -> batch size -> number of batches."""
        sizes: dict[int, Counter[int]] = {}
        for one in self.slices:
            sizes.setdefault(one.stage, Counter())[one.num_units] += 1
        return sizes

    def _mean_batches(self) -> tuple[float, ...]:
        sizes = self.batch_sizes()
        stages = range(max(sizes, default=-1) + 1)
        return tuple(
            sum(n * k for n, k in sizes[s].items()) / sum(sizes[s].values()) if s in sizes else 0.0 for s in stages
        )


def percentile(ascending: Sequence[float], share: float) -> float | None:
    """Nearest-rank percentile, None of nothing."""
    if not ascending:
        return None
    return ascending[min(len(ascending) - 1, max(0, math.ceil(share * len(ascending)) - 1))]


def lognormal_noise(rng: Random, sigma: float) -> Callable[[], float]:
    """Factors of mean 1 for batch times; ``sigma`` is the standard deviation of their logarithm."""
    return lambda: rng.lognormvariate(-sigma * sigma / 2, sigma)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One scheduler with its trace (unit ids are indices into it) and its world. ``noise`` multiplies the true time of
    each slice, e.g. ``lognormal_noise(Random(0), 0.1)``. ``num_executors``: slices that it may run at once."""

    scheduler: Scheduler
    trace: Sequence[TraceUnit]
    world: World
    noise: Callable[[], float] | None = None
    num_executors: int = 1


class Target(Protocol):
    """Something that lives on a clock."""

    def step(self, now_s: float, events: list[Any]) -> None:
        """These happened just now."""
        ...

    def wake(self, now_s: float) -> None:
        """It asked to be woken."""
        ...


class Clock:
    """One time for many targets: events in their order, and at one moment before those that asked to be woken.

    O(log events), however many targets there are.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, bool, int, Target, Any]] = []
        self._count = 0
        #: When each target is woken next; an entry of another time is stale.
        self._wakeups_s: dict[Target, float] = {}

    def push(self, when_s: float, target: Target, event: Any, *, is_wakeup: bool = False) -> None:
        """Let something happen to a target."""
        self._count += 1
        heappush(self._heap, (when_s, is_wakeup, self._count, target, event))

    def wake_at(self, when_s: float | None, target: Target) -> None:
        """Wake a target then, and not when it was to be woken before; None: not at all."""
        if self._wakeups_s.get(target) == when_s:
            return
        if when_s is None:
            del self._wakeups_s[target]
            return
        self._wakeups_s[target] = when_s
        self.push(when_s, target, None, is_wakeup=True)

    def run(self) -> None:
        """Until nothing is left to happen."""
        heap = self._heap
        while heap:
            now_s, is_wakeup, _, target, event = heappop(heap)
            if is_wakeup:
                if self._wakeups_s.get(target) == now_s:
                    del self._wakeups_s[target]
                    target.wake(now_s)
                continue
            events = [event]
            while heap and heap[0][0] == now_s and heap[0][3] is target and not heap[0][1]:
                events.append(heappop(heap)[4])
            target.step(now_s, events)


class Node:
    """A replica at work. Units come from its trace, or one by one (``arrive``). ``on_end`` hears of each record."""

    def __init__(
        self,
        replica: Replica,
        clock: Clock,
        *,
        check_each_step: bool = False,
        on_end: Callable[[Record], None] | None = None,
        keeps_slices: bool = True,
    ) -> None:
        self.replica, self._clock = replica, clock
        self._check_each_step, self._on_end, self._keeps_slices = check_each_step, on_end, keeps_slices
        self.scheduler = replica.scheduler
        self._now_s = -math.inf
        self.num_running = 0
        self._num_idle_wakeups = 0
        self._units: list[TraceUnit] = []
        self._costs_s: list[float] = []
        self._records: list[Record | None] = []
        self._slices: list[SliceRecord] = []

    def load(self, drain_at_s: float | None) -> None:
        """Let its whole trace come."""
        for unit in self.replica.trace:
            arrival = self._arrival(unit)
            self._clock.push(unit.arrived_s, self, arrival)
            if unit.cancelled_at_s is not None:
                when_s = max(unit.cancelled_at_s, unit.arrived_s)
                self._clock.push(when_s, self, UnitCancelled(unit_id=arrival.unit_id))
        if drain_at_s is not None:
            self._clock.push(drain_at_s, self, Drain())

    def arrive(self, now_s: float, unit: TraceUnit) -> None:
        """A unit comes now."""
        self.step(max(now_s, self._now_s), [self._arrival(unit)])

    def _arrival(self, unit: TraceUnit) -> UnitArrived:
        self._units.append(unit)
        self._costs_s.append(0.0)
        self._records.append(None)
        return UnitArrived(
            unit_id=len(self._units) - 1,
            work=unit.work,
            deadline_s=unit.deadline_s,
            priority=unit.priority,
            tenant=unit.tenant,
            held_bytes=unit.held_bytes,
            batch_key=unit.batch_key,
        )

    def wake(self, now_s: float) -> None:
        """See ``Target``. Raises: RuntimeError: it does nothing else."""
        self._num_idle_wakeups = self._num_idle_wakeups + 1 if now_s <= self._now_s else 0
        if self._num_idle_wakeups > _MAX_IDLE_WAKEUPS:
            raise RuntimeError(f"policy asks for a wake-up at {now_s} again and again, and does nothing")
        self._handle(max(now_s, self._now_s), [Tick()])

    def step(self, now_s: float, events: list[Event]) -> None:
        """See ``Target``."""
        self._num_idle_wakeups = 0
        self._handle(now_s, events)

    def _handle(self, now_s: float, events: list[Event]) -> None:
        self._now_s = now_s
        self.num_running -= sum(isinstance(event, SliceFinished) for event in events)
        for decision in self.scheduler.handle(now_s, *events):
            self._carry_out(decision)
        if self._check_each_step:
            self.scheduler.check_invariants()
        wakeup_s = self.scheduler.next_wakeup_s()
        self._clock.wake_at(None if wakeup_s is None else max(wakeup_s, now_s), self)

    def _carry_out(self, decision: Decision) -> None:
        if isinstance(decision, RunSlice):
            self._start(decision)
            return
        if isinstance(decision, Preempted):
            return
        if self._records[decision.unit_id] is not None:
            raise RuntimeError(f"second terminal decision for unit {decision.unit_id}: {decision}")
        unit = self._units[decision.unit_id]
        record = self._records[decision.unit_id] = Record(
            unit_id=decision.unit_id,
            tenant=unit.tenant,
            arrived_s=unit.arrived_s,
            deadline_s=unit.deadline_s,
            done_s=self._now_s,
            decision=decision,
            cost_s=self._costs_s[decision.unit_id],
        )
        if self._on_end is not None:
            self._on_end(record)

    def _start(self, run: RunSlice) -> None:
        self.num_running += 1
        if self.num_running > self.replica.num_executors:
            raise RuntimeError(f"{self.num_running} slices at once; there are {self.replica.num_executors} executors")
        units = [self._units[unit_id] for unit_id in run.unit_ids]
        elapsed_s = self.replica.world.slice_s(run.stage, run.num_stages, units)
        if self.replica.noise is not None:
            elapsed_s *= self.replica.noise()
        share_s = elapsed_s / len(units)
        for unit_id in run.unit_ids:
            self._costs_s[unit_id] += share_s
        if self._keeps_slices:
            record = SliceRecord(
                stage=run.stage,
                num_stages=run.num_stages,
                num_units=len(units),
                started_s=self._now_s,
                elapsed_s=elapsed_s,
            )
            self._slices.append(record)
        stages = range(run.stage, run.stage + run.num_stages)
        results = tuple(
            SliceResult(
                unit_id=unit_id,
                report=self.replica.world.report(unit, stages[-1]),
                failed=unit.fails_at_stage is not None and unit.fails_at_stage in stages,
            )
            for unit_id, unit in zip(run.unit_ids, units, strict=True)
        )
        event = SliceFinished(slice_id=run.slice_id, results=results, elapsed_s=elapsed_s)
        self._clock.push(self._now_s + elapsed_s, self, event)

    def simulation(self) -> Simulation:
        """What happened. Raises: RuntimeError: a unit was lost. AssertionError: as ``check_invariants``."""
        self.scheduler.check_invariants()
        records = [record for record in self._records if record is not None]
        if len(records) != len(self._units):
            lost = [unit_id for unit_id, record in enumerate(self._records) if record is None]
            raise RuntimeError(f"{len(lost)} of {len(self._units)} units got no terminal decision, first {lost[:5]}")
        start_s = min((unit.arrived_s for unit in self._units), default=0.0)
        end_s = max((record.done_s for record in records), default=0.0)
        return Simulation(records=tuple(records), slices=tuple(self._slices), duration_s=end_s - start_s)


def simulate_together(
    replicas: Sequence[Replica], *, drain_at_s: float | None = None, check_each_step: bool = False
) -> list[Simulation]:
    """Replay the traces on one clock until every unit has its terminal decision.

    ``check_each_step`` runs each scheduler's invariants after every call; they run once at the end in any case.

    Raises:
        RuntimeError: a scheduler lost a unit, ended one twice, or ran more slices than there are executors.
        AssertionError: a scheduler's own invariants do not hold.
    """
    clock = Clock()
    nodes = [Node(replica, clock, check_each_step=check_each_step) for replica in replicas]
    for node in nodes:
        node.load(drain_at_s)
    clock.run()
    return [node.simulation() for node in nodes]


def simulate(
    scheduler: Scheduler,
    trace: Sequence[TraceUnit],
    world: World,
    *,
    noise: Callable[[], float] | None = None,
    num_executors: int = 1,
    drain_at_s: float | None = None,
    check_each_step: bool = False,
) -> Simulation:
    """``simulate_together`` of one replica."""
    replica = Replica(scheduler=scheduler, trace=trace, world=world, noise=noise, num_executors=num_executors)
    (simulation,) = simulate_together([replica], drain_at_s=drain_at_s, check_each_step=check_each_step)
    return simulation
