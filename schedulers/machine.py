"""What every batching policy shares: the life of a sample, deadlines, accounting, and the checks on both.

A policy is a subclass that owns the queues: it says where a waiting sample stands (``_enqueue``, ``_dequeue``), what
to run next (``_start``) and what becomes of samples that need more stages (``_continue``). It never creates a terminal
decision by itself, so that "exactly one per sample" is written once.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from schedulers.cost import CostModel
from schedulers.types import (
    BatchFinished,
    Decision,
    Drain,
    Event,
    Fail,
    Reject,
    RejectReason,
    Release,
    Reply,
    RunBatch,
    SampleArrived,
    SampleCancelled,
    StageResult,
    Tick,
)

#: Weight of the newest batch in the learned share of samples that leave at each exit.
_EXIT_RATE_WEIGHT = 0.05
#: Timers of samples that are gone are swept out when they outnumber the live ones by this much.
_MAX_STALE_TIMERS = 4096
_INF = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyConfig:
    """Limits that hold for every policy.

    ``max_batch``: samples in one engine call. ``max_waiting``: samples waiting at all stages together.
    ``num_executors``: batches that may run at the same time.

    Raises:
        ValueError: if one is below 1.
    """

    max_batch: int = 32
    max_waiting: int = 1024
    num_executors: int = 1

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_waiting", "num_executors"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; need at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Where the samples are: ``arrived`` equals the sum of the others, always."""

    arrived: int
    waiting: int
    running: int
    finished: int
    rejected: int
    cancelled: int
    failed: int


class Sample:
    """One live sample. Owned and mutated by its machine only."""

    __slots__ = (
        "arrived_s",
        "deadline_s",
        "enqueued_s",
        "is_cancelled",
        "is_waiting",
        "last_exit",
        "number",
        "priority",
        "sample_id",
        "stage",
        "tenant",
        "thresholds",
        "timer_s",
    )

    def __init__(self, event: SampleArrived, now_s: float, number: int) -> None:
        self.sample_id = event.sample_id
        self.deadline_s = event.deadline_s
        self.thresholds = event.thresholds
        self.priority = event.priority
        self.tenant = event.tenant
        self.arrived_s = now_s
        #: When it began to wait where it stands.
        self.enqueued_s = now_s
        #: Arrival number, unique: breaks ties wherever samples are ordered.
        self.number = number
        #: Next stage to run, or the one that runs now.
        self.stage = 0
        #: Deepest exit whose logits exist, None before the first.
        self.last_exit: int | None = None
        #: True while in a queue; False while in a batch and after the terminal decision.
        self.is_waiting = False
        self.is_cancelled = False
        #: Earliest timer set for this sample, ``inf`` when there is none.
        self.timer_s = math.inf


class Batch:
    """One batch that an executor runs now."""

    __slots__ = ("members", "num_stages", "predicted_s", "stage", "started_s")

    def __init__(self, stage: int, num_stages: int, samples: list[Sample], started_s: float, predicted_s: float):
        self.stage = stage
        self.num_stages = num_stages
        self.members = {sample.sample_id: sample for sample in samples}
        self.started_s = started_s
        self.predicted_s = predicted_s


class Machine(ABC):
    """A scheduler without its policy. See ``schedulers.types.Scheduler`` for the contract of the public methods."""

    def __init__(self, cost_model: CostModel, config: PolicyConfig) -> None:
        self._cost = cost_model
        self._limits = config
        self._num_stages = cost_model.num_stages
        self._now_s = -math.inf
        self._is_draining = False
        #: Decisions of the current call; kept over an exception, so that none is lost.
        self._out: list[Decision] = []
        #: All samples without a terminal decision.
        self._live: dict[int, Sample] = {}
        self._running: dict[int, Batch] = {}
        self._next_batch_id = 0
        #: (when, tie-break, sample); a sample may have several or stale ones, at most one is needed.
        self._timers: list[tuple[float, int, Sample]] = []
        #: Learned share of the samples run at a stage that leave there.
        self._exit_rates = [1.0 / (self._num_stages - k) for k in range(self._num_stages)]
        self._num_arrived = self._num_finished = self._num_rejected = self._num_cancelled = self._num_failed = 0

    # -- public ------------------------------------------------------------------------------------------------------

    def handle(self, now_s: float, *events: Event) -> list[Decision]:
        """Take what happened up to ``now_s`` and say what to do, in order.

        Raises:
            ValueError: the caller broke the contract. Events before the offending one took effect, and their decisions
                come with the next call; the offending event and those after it did not.
        """
        if not self._now_s <= now_s < math.inf:
            raise ValueError(f"now_s is {now_s} after {self._now_s}; time must be finite and not run backwards")
        self._now_s = now_s
        for event in events:
            self._take(event)
        self._fire_timers()
        self._start()
        decisions, self._out = self._out, []
        return decisions

    def counts(self) -> Counts:
        """Where all samples so far are."""
        running = sum(len(batch.members) for batch in self._running.values())
        return Counts(
            arrived=self._num_arrived,
            waiting=self._num_waiting(),
            running=running,
            finished=self._num_finished,
            rejected=self._num_rejected,
            cancelled=self._num_cancelled,
            failed=self._num_failed,
        )

    def check_invariants(self) -> None:
        """Raise AssertionError, with the numbers, unless every sample is in exactly one place. O(live samples)."""
        counts = self.counts()
        ended = counts.finished + counts.rejected + counts.cancelled + counts.failed
        if counts.arrived != counts.waiting + counts.running + ended:
            raise AssertionError(f"arrived != waiting + running + finished + rejected + cancelled + failed: {counts}")
        waiting = [sample.sample_id for sample in self._waiting()]
        running = [sample_id for batch in self._running.values() for sample_id in batch.members]
        places = waiting + running
        if len(waiting) != counts.waiting or len(set(places)) != len(places) or set(places) != self._live.keys():
            raise AssertionError(
                f"{len(places)} places, {len(set(places))} different, for {len(self._live)} live samples: {counts}"
            )
        if any(not self._live[sample_id].is_waiting for sample_id in waiting):
            raise AssertionError("a sample in a queue is marked as running")
        if counts.waiting > self._limits.max_waiting + self._limits.max_batch * self._limits.num_executors:
            raise AssertionError(f"{counts.waiting} waiting; limit is {self._limits.max_waiting} and a batch each")

    def queued_s(self, now_s: float) -> float:
        """Predicted seconds until everything that waits and runs is done; O(number of stages)."""
        total_s = 0.0
        onward = [0.0] * (self._num_stages + 1)
        for batch in self._running.values():
            total_s += max(0.0, batch.started_s + batch.predicted_s - now_s)
            end = batch.stage + batch.num_stages
            onward[end] += len(batch.members) * (1.0 - self._exit_rates[end - 1])
        return (total_s + self._waiting_s(onward)) / self._limits.num_executors

    def next_wakeup_s(self) -> float | None:
        """When a ``Tick`` would change something, or None."""
        timers = self._timers
        while timers and not timers[0][2].is_waiting:
            heappop(timers)[2].timer_s = math.inf
        return max(timers[0][0], self._now_s) if timers else None

    def exit_rates(self) -> tuple[float, ...]:
        """Learned share of the samples run at each stage that leave there."""
        return tuple(self._exit_rates)

    @property
    def is_drained(self) -> bool:
        """True once a ``Drain`` was seen and no sample is left."""
        return self._is_draining and not self._live

    # -- for the policy to fill in -----------------------------------------------------------------------------------

    @abstractmethod
    def _enqueue(self, sample: Sample) -> None:
        """Put a new sample in its queue; may make room by ``_reject``-ing another one, or reject this one."""

    @abstractmethod
    def _dequeue(self, sample: Sample) -> None:
        """Take a waiting sample out of its queue."""

    @abstractmethod
    def _start(self) -> None:
        """Start batches on idle executors."""

    @abstractmethod
    def _continue(self, batch: Batch, survivors: list[Sample]) -> None:
        """``survivors`` need the stage after ``batch``; put them in a queue or in a batch."""

    @abstractmethod
    def _num_waiting(self) -> int: ...

    @abstractmethod
    def _waiting(self) -> Iterator[Sample]: ...

    @abstractmethod
    def _stage_counts(self) -> Iterable[int]:
        """Waiting samples per stage."""

    def _latest_start_s(self, sample: Sample) -> float:
        """Last moment at which running a waiting sample, alone, still meets its deadline."""
        return sample.deadline_s - self._cost.batch_s(sample.stage, 1)

    # -- events ------------------------------------------------------------------------------------------------------

    def _take(self, event: Event) -> None:
        if isinstance(event, BatchFinished):
            self._on_finished(event)
        elif isinstance(event, SampleArrived):
            self._on_arrived(event)
        elif isinstance(event, SampleCancelled):
            self._on_cancelled(event.sample_id)
        elif isinstance(event, Drain):
            self._is_draining = True
        elif not isinstance(event, Tick):
            raise ValueError(f"unknown event {event!r}")

    def _on_arrived(self, event: SampleArrived) -> None:
        if event.sample_id in self._live:
            raise ValueError(f"sample {event.sample_id} arrived twice; ids of live samples must differ")
        if len(event.thresholds) != self._num_stages:
            raise ValueError(f"sample has {len(event.thresholds)} thresholds; the network has {self._num_stages} exits")
        self._num_arrived += 1
        sample = Sample(event, self._now_s, self._num_arrived)
        self._live[event.sample_id] = sample
        if self._is_draining:
            self._reject(sample, RejectReason.DRAINING)
        elif event.deadline_s <= self._now_s:
            self._reject(sample, RejectReason.DEADLINE_PASSED)
        elif self._latest_start_s(sample) < self._now_s:
            self._reject(sample, RejectReason.DEADLINE_UNREACHABLE)
        else:
            self._enqueue(sample)
            if sample.is_waiting:
                self._set_timer(sample)

    def _on_cancelled(self, sample_id: int) -> None:
        sample = self._live.get(sample_id)
        if sample is None:
            return
        sample.is_cancelled = True
        if sample.is_waiting:
            self._dequeue(sample)
            self._release(sample)

    def _on_finished(self, event: BatchFinished) -> None:
        batch = self._running.get(event.batch_id)
        if batch is None:
            raise ValueError(f"batch {event.batch_id} is not running; running: {sorted(self._running)}")
        members, results = batch.members, event.results
        if len(results) != len(members) or {result.sample_id for result in results} != members.keys():
            raise ValueError(f"batch {event.batch_id} has {len(members)} samples; got other ones in its results")
        self._cost.observe(batch.stage, len(members), event.elapsed_s, batch.num_stages)
        del self._running[event.batch_id]
        survivors = self._settle(batch, results)
        if survivors:
            self._continue(batch, survivors)

    def _settle(self, batch: Batch, results: tuple[StageResult, ...]) -> list[Sample]:
        """End the samples that are done; return those that need the next stage, their ``stage`` advanced."""
        exit_index = batch.stage + batch.num_stages - 1
        is_last = exit_index == self._num_stages - 1
        members, leavers, survivors = batch.members, [], []
        for result in results:
            sample = members[result.sample_id]
            confidence = result.confidence
            if sample.is_cancelled:
                self._release(sample)
            elif result.failed or (confidence is not None and not -_INF < confidence < _INF):
                self._fail(sample)
            elif is_last or (confidence is not None and confidence >= sample.thresholds[exit_index]):
                leavers.append(sample)
            else:
                if confidence is not None:
                    sample.last_exit = exit_index
                sample.stage = exit_index + 1
                survivors.append(sample)
        if leavers or survivors:
            self._reply(leavers, exit_index, False)
            rate = len(leavers) / (len(leavers) + len(survivors))
            self._exit_rates[exit_index] += _EXIT_RATE_WEIGHT * (rate - self._exit_rates[exit_index])
        return survivors

    # -- deadlines ---------------------------------------------------------------------------------------------------

    def _set_timer(self, sample: Sample) -> None:
        """Make sure that ``_fire_timers`` looks at this waiting sample at its latest start."""
        when_s = self._latest_start_s(sample)
        if when_s < sample.timer_s and when_s < math.inf:
            sample.timer_s = when_s
            heappush(self._timers, (when_s, sample.number, sample))

    def _fire_timers(self) -> None:
        timers, now_s = self._timers, self._now_s
        while timers and timers[0][0] <= now_s:
            sample = heappop(timers)[2]
            sample.timer_s = math.inf
            if not sample.is_waiting:
                continue
            if self._latest_start_s(sample) <= now_s:
                self._dequeue(sample)
                self._give_up(sample)
            else:
                self._set_timer(sample)
        if len(timers) > 2 * len(self._live) + _MAX_STALE_TIMERS:
            self._timers = [timer for timer in timers if timer[2].is_waiting and timer[0] == timer[2].timer_s]
            heapify(self._timers)
            # A running sample lost its timer: it gets a new one when it waits again.
            for sample in self._live.values():
                if not sample.is_waiting:
                    sample.timer_s = math.inf

    def _give_up(self, sample: Sample) -> None:
        """The deadline cannot be met by running more: answer from an exit already passed, or reject."""
        if sample.last_exit is not None:
            self._reply([sample], sample.last_exit, True)
        elif sample.deadline_s <= self._now_s:
            self._reject(sample, RejectReason.DEADLINE_PASSED)
        else:
            self._reject(sample, RejectReason.DEADLINE_UNREACHABLE)

    # -- batches -----------------------------------------------------------------------------------------------------

    def _run(self, samples: list[Sample], stage: int, num_stages: int = 1) -> None:
        num_samples = len(samples)
        predicted_s = sum(self._cost.batch_s(s, num_samples) for s in range(stage, stage + num_stages))
        for sample in samples:
            sample.is_waiting = False
        batch = Batch(stage, num_stages, samples, self._now_s, predicted_s)
        batch_id = self._next_batch_id
        self._next_batch_id += 1
        self._running[batch_id] = batch
        self._out.append(
            RunBatch(batch_id=batch_id, stage=stage, sample_ids=tuple(batch.members), num_stages=num_stages)
        )

    def _waiting_s(self, onward: list[float]) -> float:
        """Engine seconds for the waiting samples and for those expected to come from ``onward[stage]``."""
        total_s, flow = 0.0, 0.0
        max_batch = self._limits.max_batch
        for stage, waiting in enumerate(self._stage_counts()):
            flow += waiting + onward[stage]
            if flow > 0.0:
                size = min(max_batch, math.ceil(flow))
                total_s += max(flow / size, 1.0) * self._cost.batch_s(stage, size)
            flow *= 1.0 - self._exit_rates[stage]
        return total_s

    # -- terminal decisions: the only places where a sample ends -----------------------------------------------------

    def _end(self, sample: Sample) -> None:
        sample.is_waiting = False
        del self._live[sample.sample_id]

    def _reply(self, samples: list[Sample], exit_index: int, degraded: bool) -> None:
        live = self._live
        for sample in samples:  # _end, without its call
            sample.is_waiting = False
            del live[sample.sample_id]
        self._num_finished += len(samples)
        self._out += [Reply(sample_id=s.sample_id, exit_index=exit_index, degraded=degraded) for s in samples]

    def _reject(self, sample: Sample, reason: RejectReason) -> None:
        self._end(sample)
        self._num_rejected += 1
        # A draining replica never takes it, another one can at once.
        retry_after_s = 0.0 if reason is RejectReason.DRAINING else self.queued_s(self._now_s)
        self._out.append(Reject(sample_id=sample.sample_id, reason=reason, retry_after_s=retry_after_s))

    def _fail(self, sample: Sample) -> None:
        self._end(sample)
        self._num_failed += 1
        self._out.append(Fail(sample_id=sample.sample_id))

    def _release(self, sample: Sample) -> None:
        self._end(sample)
        self._num_cancelled += 1
        self._out.append(Release(sample_id=sample.sample_id))
