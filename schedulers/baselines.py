"""The two policies that ours is measured against: plain, but not weakened.

Both keep one first-in first-out queue of bounded length, and leave samples out of a batch that would end too late for
them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from schedulers.cost import CostModel
from schedulers.machine import Batch, Machine, PolicyConfig, Sample
from schedulers.types import RejectReason


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicBatchingConfig(PolicyConfig):
    """A batch starts when it is full or its oldest sample has waited ``max_delay_s``."""

    max_delay_s: float = 0.0

    def __post_init__(self) -> None:
        super(DynamicBatchingConfig, self).__post_init__()
        if not self.max_delay_s >= 0.0:
            raise ValueError(f"max_delay_s is {self.max_delay_s}; need a number >= 0")


class _FifoMachine(Machine):
    """One queue of new samples, batched by size and delay."""

    def __init__(self, cost_model: CostModel, config: DynamicBatchingConfig) -> None:
        super().__init__(cost_model, config)
        self._config = config
        #: Arrival order. A sample that left early stays as a stale entry until it reaches the front.
        self._queue: deque[Sample] = deque()
        self._num_queued = 0

    def next_wakeup_s(self) -> float | None:
        """When a ``Tick`` would change something, or None."""
        timer_s = super().next_wakeup_s()
        if len(self._running) >= self._config.num_executors or not self._num_queued:
            return timer_s
        delay_end_s = max(self._now_s, self._oldest_s() + self._config.max_delay_s)
        return delay_end_s if timer_s is None else min(timer_s, delay_end_s)

    def _enqueue(self, sample: Sample) -> None:
        if self._num_queued >= self._config.max_waiting:
            self._reject(sample, RejectReason.QUEUE_FULL)
            return
        sample.is_waiting = True
        self._queue.append(sample)
        self._num_queued += 1

    def _dequeue(self, sample: Sample) -> None:
        self._num_queued -= 1  # the entry is stale from now on

    def _num_waiting(self) -> int:
        return self._num_queued

    def _waiting(self) -> Iterator[Sample]:
        return (sample for sample in self._queue if sample.is_waiting)

    def _stage_counts(self) -> Iterable[int]:
        return (self._num_queued, *[0] * (self._num_stages - 1))

    def _oldest_s(self) -> float:
        while not self._queue[0].is_waiting:
            self._queue.popleft()
        return self._queue[0].arrived_s

    def _is_batch_due(self) -> bool:
        if self._num_queued >= self._config.max_batch:
            return True
        return self._num_queued > 0 and self._now_s >= self._oldest_s() + self._config.max_delay_s

    def _take_batch(self, num_stages: int) -> list[Sample]:
        """Up to a full batch in arrival order, without those that would be late after the batch's ``num_stages``."""
        size = min(self._num_queued, self._config.max_batch)
        end_s = self._now_s + sum(self._cost.batch_s(stage, size) for stage in range(num_stages))
        samples: list[Sample] = []
        while self._queue and len(samples) < size:
            sample = self._queue.popleft()
            if not sample.is_waiting:
                continue
            self._num_queued -= 1
            if sample.deadline_s < end_s:
                self._give_up(sample)
            else:
                samples.append(sample)
        return samples

    def _start_due(self, num_stages: int) -> None:
        while len(self._running) < self._config.num_executors and self._is_batch_due():
            samples = self._take_batch(num_stages)
            if samples:
                self._run(samples, 0, num_stages)


class FullNetworkDynamicBatching(_FifoMachine):
    """Every sample runs the whole network, in one engine call per batch."""

    def _start(self) -> None:
        self._start_due(self._num_stages)

    def _continue(self, batch: Batch, survivors: list[Sample]) -> None:
        raise AssertionError(f"{len(survivors)} samples survived the last stage")

    def _latest_start_s(self, sample: Sample) -> float:
        return sample.deadline_s - sum(self._cost.batch_s(stage, 1) for stage in range(self._num_stages))


class EarlyExitNoRebatching(_FifoMachine):
    """Samples leave at their exits, but a batch keeps its executor, and is not refilled, until its last one left."""

    def _start(self) -> None:
        self._start_due(1)

    def _continue(self, batch: Batch, survivors: list[Sample]) -> None:
        stage = survivors[0].stage
        end_s = self._now_s + self._cost.batch_s(stage, len(survivors))
        for sample in survivors:
            if sample.deadline_s < end_s:
                self._give_up(sample)
        on_time = [sample for sample in survivors if sample.deadline_s >= end_s]
        if on_time:
            self._run(on_time, stage)
