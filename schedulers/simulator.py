"""Replays a trace through any policy on a virtual clock: no engine, no waiting, the same answer every time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from random import Random
from typing import TypeAlias

from schedulers.types import (
    BatchFinished,
    Decision,
    Drain,
    Event,
    Fail,
    Priority,
    Reject,
    Release,
    Reply,
    RunBatch,
    SampleArrived,
    SampleCancelled,
    Scheduler,
    StageResult,
    Tick,
)

#: True seconds of (stage, number of samples).
BatchCost: TypeAlias = Callable[[int, int], float]
#: A policy that asks to be woken this often without time moving on is stuck.
_MAX_IDLE_WAKEUPS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSample:
    """One sample of a trace: when it comes, what it wants, and what the network would say at each exit.

    ``confidences``: true confidence per exit. ``fails_at_stage``: the engine fails it there. Times are seconds from
    the start of the trace; ``cancelled_at_s`` may be before, during or after its service.
    """

    arrived_s: float
    deadline_s: float
    thresholds: tuple[float, ...]
    confidences: tuple[float, ...]
    tenant: str = ""
    priority: Priority = Priority.NORMAL
    cancelled_at_s: float | None = None
    fails_at_stage: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What became of one sample. ``cost_s`` is its share of the engine time of every batch that it was in."""

    sample_id: int
    tenant: str
    arrived_s: float
    deadline_s: float
    done_s: float
    decision: Reply | Reject | Fail | Release
    cost_s: float

    @property
    def latency_s(self) -> float:
        """Arrival to terminal decision."""
        return self.done_s - self.arrived_s

    @property
    def is_good(self) -> bool:
        """Answered by its deadline, at an exit that its own threshold chose."""
        return isinstance(self.decision, Reply) and not self.decision.degraded and self.done_s <= self.deadline_s


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRecord:
    """One batch that ran."""

    stage: int
    num_stages: int
    num_samples: int
    started_s: float
    elapsed_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A run in numbers. Percentiles are over replies, in seconds, None without replies; shares are of all samples."""

    num_samples: int
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
    """Everything that happened: one record per sample, by sample id; batches by start."""

    records: tuple[Record, ...]
    batches: tuple[BatchRecord, ...]
    duration_s: float

    def report(self) -> Report:
        """Summarise."""
        total = len(self.records)
        replies = [r for r in self.records if isinstance(r.decision, Reply)]
        latencies = sorted(r.latency_s for r in replies)
        good = sum(r.is_good for r in self.records)
        busy_s = sum(b.elapsed_s for b in self.batches)
        return Report(
            num_samples=total,
            good_share=good / max(total, 1),
            degraded_share=sum(isinstance(r.decision, Reply) and r.decision.degraded for r in replies) / max(total, 1),
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
        for batch in self.batches:
            sizes.setdefault(batch.stage, Counter())[batch.num_samples] += 1
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


class _Run:
    """State of one replay."""

    def __init__(
        self,
        policy: Scheduler,
        trace: Sequence[TraceSample],
        batch_cost: BatchCost,
        noise: Callable[[], float] | None,
        num_executors: int,
        check_each_step: bool,
    ) -> None:
        self.policy, self.trace, self.batch_cost, self.noise = policy, trace, batch_cost, noise
        self.num_executors, self.check_each_step = num_executors, check_each_step
        self.now_s = -math.inf
        self.num_running = 0
        self.events: list[tuple[float, int, Event]] = []
        self.num_events = 0
        self.costs_s = [0.0] * len(trace)
        self.records: list[Record | None] = [None] * len(trace)
        self.batches: list[BatchRecord] = []

    def push(self, when_s: float, event: Event) -> None:
        heappush(self.events, (when_s, self.num_events, event))
        self.num_events += 1

    def load(self, drain_at_s: float | None) -> None:
        for sample_id, sample in enumerate(self.trace):
            arrival = SampleArrived(
                sample_id=sample_id,
                deadline_s=sample.deadline_s,
                thresholds=sample.thresholds,
                priority=sample.priority,
                tenant=sample.tenant,
            )
            self.push(sample.arrived_s, arrival)
            if sample.cancelled_at_s is not None:
                self.push(max(sample.cancelled_at_s, sample.arrived_s), SampleCancelled(sample_id=sample_id))
        if drain_at_s is not None:
            self.push(drain_at_s, Drain())

    def loop(self) -> None:
        idle = 0
        while True:
            wakeup_s = self.policy.next_wakeup_s()
            if not self.events and wakeup_s is None:
                return
            next_s = self.events[0][0] if self.events else math.inf
            if wakeup_s is not None and wakeup_s < next_s:
                idle = idle + 1 if wakeup_s <= self.now_s else 0
                if idle > _MAX_IDLE_WAKEUPS:
                    raise RuntimeError(f"policy asks for a wake-up at {wakeup_s} again and again, and does nothing")
                self.step(wakeup_s, [Tick()])
                continue
            idle = 0
            batch: list[Event] = []
            while self.events and self.events[0][0] == next_s:
                batch.append(heappop(self.events)[2])
            self.step(next_s, batch)

    def step(self, now_s: float, events: list[Event]) -> None:
        if now_s < self.now_s:
            raise RuntimeError(f"virtual time ran backwards, from {self.now_s} to {now_s}")
        self.now_s = now_s
        self.num_running -= sum(isinstance(event, BatchFinished) for event in events)
        for decision in self.policy.handle(now_s, *events):
            self.carry_out(decision)
        if self.check_each_step:
            self.policy.check_invariants()

    def carry_out(self, decision: Decision) -> None:
        if isinstance(decision, RunBatch):
            self.start(decision)
            return
        if self.records[decision.sample_id] is not None:
            raise RuntimeError(f"second terminal decision for sample {decision.sample_id}: {decision}")
        sample = self.trace[decision.sample_id]
        self.records[decision.sample_id] = Record(
            sample_id=decision.sample_id,
            tenant=sample.tenant,
            arrived_s=sample.arrived_s,
            deadline_s=sample.deadline_s,
            done_s=self.now_s,
            decision=decision,
            cost_s=self.costs_s[decision.sample_id],
        )

    def start(self, run: RunBatch) -> None:
        self.num_running += 1
        if self.num_running > self.num_executors:
            raise RuntimeError(f"{self.num_running} batches at once; there are {self.num_executors} executors")
        size = len(run.sample_ids)
        stages = range(run.stage, run.stage + run.num_stages)
        elapsed_s = sum(self.batch_cost(stage, size) for stage in stages) * (self.noise() if self.noise else 1.0)
        for sample_id in run.sample_ids:
            self.costs_s[sample_id] += elapsed_s / size
        self.batches.append(
            BatchRecord(
                stage=run.stage,
                num_stages=run.num_stages,
                num_samples=size,
                started_s=self.now_s,
                elapsed_s=elapsed_s,
            )
        )
        results = tuple(self.result(sample_id, stages) for sample_id in run.sample_ids)
        self.push(self.now_s + elapsed_s, BatchFinished(batch_id=run.batch_id, results=results, elapsed_s=elapsed_s))

    def result(self, sample_id: int, stages: range) -> StageResult:
        sample = self.trace[sample_id]
        return StageResult(
            sample_id=sample_id,
            confidence=sample.confidences[stages[-1]],
            failed=sample.fails_at_stage is not None and sample.fails_at_stage in stages,
        )


def simulate(
    policy: Scheduler,
    trace: Sequence[TraceSample],
    batch_cost: BatchCost,
    *,
    noise: Callable[[], float] | None = None,
    num_executors: int = 1,
    drain_at_s: float | None = None,
    check_each_step: bool = False,
) -> Simulation:
    """Replay ``trace`` (sample ids are its indices) until every sample has its terminal decision.

    ``noise`` multiplies the true time of each batch, e.g. ``lognormal_noise(Random(0), 0.1)``. ``check_each_step``
    runs the policy's invariants after every call; they run once at the end in any case.

    Raises:
        RuntimeError: the policy lost a sample, ended one twice, or ran more batches than there are executors.
        AssertionError: the policy's own invariants do not hold.
    """
    run = _Run(policy, trace, batch_cost, noise, num_executors, check_each_step)
    run.load(drain_at_s)
    run.loop()
    policy.check_invariants()
    records = [record for record in run.records if record is not None]
    if len(records) != len(trace):
        lost = [sample_id for sample_id, record in enumerate(run.records) if record is None]
        raise RuntimeError(f"{len(lost)} of {len(trace)} samples got no terminal decision, first {lost[:5]}")
    start_s = min((sample.arrived_s for sample in trace), default=0.0)
    end_s = max((record.done_s for record in records), default=0.0)
    return Simulation(records=tuple(records), batches=tuple(run.batches), duration_s=end_s - start_s)
