"""The early-exit policy: samples wait at stage boundaries, and survivors of different arrivals share batches.

New samples wait in one fair queue for all tenants; survivors wait per stage, earliest deadline first. Whenever an
executor is idle, ``choose_stage`` says which queue to serve. Reasons and measurements: docs/scheduler.md.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from schedulers.cost import CostModel
from schedulers.fair_queue import FairQueue
from schedulers.machine import Batch, Machine, PolicyConfig, Sample
from schedulers.ordered_queue import OrderedQueue
from schedulers.stage_choice import StageView, choose_stage, fit_batch
from schedulers.types import RejectReason, StageResult

#: Thresholds from here on mean "never leave at this exit" (calibration writes 1e8 for an exit that it does not use).
NEVER_THRESHOLD = 1e8
#: Control of the entry reserve: one late survivor raises it as much as 50 answers in time lower it, so that about 2%
#: of the samples that enter under overload are answered early by force.
_RESERVE_UP, _RESERVE_DOWN, _MAX_RESERVE = 0.1, 0.002, 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyExitConfig(PolicyConfig):
    """Knobs of ``EarlyExitScheduler``.

    ``max_age_s``: a sample that waited this long at one stage heads the next batch, whatever the rules say.

    Raises:
        ValueError: if ``max_age_s`` is not finite and positive.
    """

    max_age_s: float = 10.0

    def __post_init__(self) -> None:
        super(EarlyExitConfig, self).__post_init__()
        if not 0.0 < self.max_age_s < math.inf:
            raise ValueError(f"max_age_s is {self.max_age_s}; need a finite number > 0")


class EarlyExitScheduler(Machine):
    """Maximises samples answered by their deadline at their own threshold, then lowers mean latency."""

    def __init__(self, cost_model: CostModel, config: EarlyExitConfig | None = None) -> None:
        config = config or EarlyExitConfig()
        super().__init__(cost_model, config)
        self._config = config
        #: Samples waiting at stage 0.
        self._fresh: FairQueue[Sample] = FairQueue()
        #: ``_survivors[k]``: (deadline_s, arrival number, sample) waiting at stage k >= 1; entry 0 stays empty.
        self._survivors: list[OrderedQueue[tuple[float, int, Sample]]] = [
            OrderedQueue() for _ in range(self._num_stages)
        ]
        self._num_queued = 0
        #: (when, sample) of everything that began to wait, oldest first; entries of samples that moved on are stale.
        self._ages: deque[tuple[float, Sample]] = deque()
        #: Under a backlog, a sample starts only if its deadline leaves this many times the later stages' full batches.
        self._reserve = 0.0

    # -- queues ------------------------------------------------------------------------------------------------------

    def _enqueue(self, sample: Sample) -> None:
        charge_s = self._charge_s(sample)
        if self._num_queued >= self._config.max_waiting and not self._make_room(sample, charge_s):
            self._reject(sample, RejectReason.QUEUE_FULL)
            return
        sample.is_waiting = True
        self._fresh.add(sample, charge_s)
        self._ages.append((self._now_s, sample))
        self._num_queued += 1

    def _make_room(self, newcomer: Sample, charge_s: float) -> bool:
        """Give up the sample furthest over its tenant's share, if the newcomer is not that one."""
        fresh = self._fresh
        if not fresh or fresh.next_tag(newcomer.tenant, charge_s) >= fresh.last_tag():
            return False
        victim = fresh.least_urgent()
        self._dequeue(victim)
        self._reject(victim, RejectReason.QUEUE_FULL)
        return True

    def _charge_s(self, sample: Sample) -> float:
        """Expected engine seconds of this sample in full batches. Priority orders the samples of one tenant; between
        two it is worth nothing, or everybody would ask for the highest."""
        total_s, share, max_batch = 0.0, 1.0, self._config.max_batch
        for stage, threshold in enumerate(sample.thresholds):
            total_s += share * self._cost.batch_s(stage, max_batch)
            if threshold < NEVER_THRESHOLD:
                share *= 1.0 - self._exit_rates[stage]
        return total_s / max_batch

    def _dequeue(self, sample: Sample) -> None:
        if sample.stage == 0:
            self._fresh.remove(sample)
        else:
            self._survivors[sample.stage].remove((sample.deadline_s, sample.number, sample))
        self._num_queued -= 1

    def _continue(self, batch: Batch, survivors: list[Sample]) -> None:
        stage, now_s = survivors[0].stage, self._now_s
        queue, ages = self._survivors[stage], self._ages
        alone_s = self._cost.batch_s(stage, 1)
        for sample in survivors:
            if sample.deadline_s < now_s + alone_s:
                self._give_up(sample)
                continue
            sample.is_waiting = True
            sample.enqueued_s = now_s
            queue.add((sample.deadline_s, sample.number, sample))
            ages.append((now_s, sample))
            self._num_queued += 1
            if sample.deadline_s - alone_s < sample.timer_s:
                self._set_timer(sample)

    def _num_waiting(self) -> int:
        return self._num_queued

    def _waiting(self) -> Iterator[Sample]:
        yield from self._fresh
        for queue in self._survivors:
            yield from (sample for _, _, sample in queue)

    def _stage_counts(self) -> Iterable[int]:
        counts = [len(queue) for queue in self._survivors]
        counts[0] = len(self._fresh)
        return counts

    # -- batches -----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        while self._num_queued and len(self._running) < self._config.num_executors:
            overdue = self._overdue()
            stage = self._choose() if overdue is None else overdue.stage
            samples = self._select(stage, overdue)
            if samples:
                self._run(samples, stage)

    def _overdue(self) -> Sample | None:
        """The sample that waited longest, if that is too long."""
        ages = self._ages
        while ages and not (ages[0][1].is_waiting and ages[0][1].enqueued_s == ages[0][0]):
            ages.popleft()
        return ages[0][1] if ages and self._now_s - ages[0][0] > self._config.max_age_s else None

    def _choose(self) -> int:
        views = [StageView(0, len(self._fresh), self._fresh.first().deadline_s)] if self._fresh else []
        for stage in range(1, self._num_stages):
            queue = self._survivors[stage]
            if queue:
                views.append(StageView(stage, len(queue), queue.first()[0]))
        return choose_stage(views, self._now_s, self._cost, self._exit_rates, self._config.max_batch)

    def _select(self, stage: int, overdue: Sample | None) -> list[Sample]:
        """Take the samples to run out of the stage's queue, ``overdue`` among them; give up those that are too late."""
        max_samples = self._config.max_batch
        samples: list[Sample] = []
        if overdue is not None:
            self._dequeue(overdue)
            samples.append(overdue)
            max_samples -= 1
        if stage == 0 and len(self._fresh) > max_samples:
            samples += self._take_with_reserve(max_samples)
        else:
            samples += self._take_waiting(stage, max_samples)
        if not samples:
            return samples
        end_s = self._now_s + self._cost.batch_s(stage, len(samples))
        if min([sample.deadline_s for sample in samples]) >= end_s:
            return samples
        return self._fit(stage, samples, overdue)

    def _take_waiting(self, stage: int, max_samples: int) -> list[Sample]:
        if stage == 0:
            samples, _ = self._fresh.take(max_samples)
        else:
            samples = [sample for _, _, sample in self._survivors[stage].take(max_samples)]
        self._num_queued -= len(samples)
        return samples

    def _take_with_reserve(self, max_samples: int) -> list[Sample]:
        """Under a backlog: pass over new samples that would not get through all stages, and fill their places."""
        batch_s = self._cost.batch_s(0, self._config.max_batch)
        earliest_deadline_s = self._now_s + batch_s + self._reserve_s()
        kept: list[Sample] = []
        while self._fresh and len(kept) < max_samples:
            samples, late = self._fresh.take(max_samples - len(kept), earliest_deadline_s)
            self._num_queued -= len(samples) + len(late)
            kept += samples
            for sample in late:
                self._give_up(sample)
        return kept

    def _fit(self, stage: int, samples: list[Sample], overdue: Sample | None) -> list[Sample]:
        """Some would be late in this batch: run the part that answers most in time."""
        soonest_s = self._now_s + self._cost.batch_s(stage, 1)
        for sample in samples:
            if sample.deadline_s < soonest_s:
                self._give_up(sample)
        feasible = sorted((s for s in samples if s.deadline_s >= soonest_s), key=lambda s: (s.deadline_s, s.number))
        if not feasible:
            return []
        deadlines_s = [sample.deadline_s for sample in feasible]
        first, count = fit_batch(deadlines_s, self._now_s, lambda n: self._cost.batch_s(stage, n), self._num_queued > 0)
        chosen, rest = feasible[first : first + count], feasible[first + count :]
        if overdue in rest:  # it must run now: this is what bounds its wait
            rest[rest.index(overdue)], chosen[-1] = chosen[-1], overdue
        for sample in feasible[:first]:
            self._give_up(sample)
        for sample in rest:
            self._put_back(stage, sample)
        return chosen

    def _put_back(self, stage: int, sample: Sample) -> None:
        """Undo ``_take_waiting`` for one sample; it never stopped waiting."""
        if stage == 0:
            self._fresh.put_back(sample)
        else:
            self._survivors[stage].add((sample.deadline_s, sample.number, sample))
        self._num_queued += 1

    # -- entry reserve -----------------------------------------------------------------------------------------------

    def _reserve_s(self) -> float:
        max_batch = self._config.max_batch
        return self._reserve * sum(self._cost.batch_s(stage, max_batch) for stage in range(1, self._num_stages))

    def _give_up(self, sample: Sample) -> None:
        if sample.last_exit is not None and self._has_backlog():
            self._reserve = min(_MAX_RESERVE, self._reserve + _RESERVE_UP)
        super()._give_up(sample)

    def _settle(self, batch: Batch, results: tuple[StageResult, ...]) -> list[Sample]:
        survivors = super()._settle(batch, results)
        if self._has_backlog():
            self._reserve = max(0.0, self._reserve - _RESERVE_DOWN * (len(results) - len(survivors)))
        return survivors

    def _has_backlog(self) -> bool:
        return len(self._fresh) > self._config.max_batch
