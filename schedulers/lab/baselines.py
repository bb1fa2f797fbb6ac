"""The two policies that early exits are measured against: plain, but not weakened.

Both keep one first-in first-out queue of bounded length, and leave units out of a slice that would end too late for
them. Work, costs and progress are those of ``schedulers.policies.exits``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from schedulers.cost import CostModel
from schedulers.kernel import Kernel
from schedulers.policies.exits import ExitConfig, ExitCost, ExitProgress
from schedulers.policies.reserve import EntryReserve
from schedulers.policy import Pick, Policy, Slice, Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicBatchingConfig(ExitConfig):
    """A slice starts when it is full or its oldest unit has waited ``max_delay_s``."""

    max_delay_s: float = 0.0

    def __post_init__(self) -> None:
        super(DynamicBatchingConfig, self).__post_init__()
        if not self.max_delay_s >= 0.0:
            raise ValueError(f"max_delay_s is {self.max_delay_s}; need a number >= 0")


def full_network(table: CostModel, config: DynamicBatchingConfig | None = None) -> Kernel:
    """Every unit runs the whole network, in one engine call per batch."""
    return _kernel(table, config or DynamicBatchingConfig(), table.num_priced)


def no_rebatching(table: CostModel, config: DynamicBatchingConfig | None = None) -> Kernel:
    """Units leave at their exits, but a batch keeps its executor, and is not refilled, until its last one left."""
    return _kernel(table, config or DynamicBatchingConfig(), 1)


def _kernel(table: CostModel, config: DynamicBatchingConfig, num_stages: int) -> Kernel:
    order = _ArrivalOrder(table.num_priced)
    cost = _RunCost(table, order.stage_counts, config, num_stages)
    progress = ExitProgress(cost, EntryReserve(lambda: False))
    batch = _DynamicBatch(order, cost, config, num_stages)
    return Kernel(Policy(order=order, batch=batch, cost=cost, progress=progress, limits=config.limits))


class _ArrivalOrder:
    """New units in order of arrival; batches that go on as they are."""

    def __init__(self, num_stages: int) -> None:
        self._num_stages = num_stages
        #: A unit that left early stays as a stale entry until it reaches the front.
        self._queue: deque[Unit] = deque()
        self.num_queued = 0
        self.onward: deque[list[Unit]] = deque()

    def __len__(self) -> int:
        return self.num_queued + sum(map(len, self.onward))

    def __iter__(self) -> Iterator[Unit]:
        return chain((unit for unit in self._queue if unit.is_waiting), chain.from_iterable(self.onward))

    def add(self, unit: Unit) -> None:
        self._queue.append(unit)
        self.num_queued += 1

    def add_again(self, units: list[Unit]) -> None:
        self.onward.append(units)

    def remove(self, unit: Unit) -> None:
        if unit.stage == 0:
            self.num_queued -= 1  # the entry is stale from now on
            return
        self.onward = deque(rest for units in self.onward if (rest := [other for other in units if other is not unit]))

    def rest(self) -> None: ...

    def victim(self, newcomer: Unit) -> Unit | None:
        return None

    def stage_counts(self) -> Iterable[int]:
        return (self.num_queued, *[0] * (self._num_stages - 1))

    def oldest_s(self) -> float:
        while not self._queue[0].is_waiting:
            self._queue.popleft()
        return self._queue[0].arrived_s

    def alike(self) -> list[Unit]:
        """The oldest unit, and those that may share a batch with it, in order."""
        self.oldest_s()
        oldest = self._queue[0]
        if oldest.batch_key is None:
            return [oldest]
        return [unit for unit in self._queue if unit.is_waiting and unit.batch_key == oldest.batch_key]


class _RunCost(ExitCost):
    """The cost of early exits, for units that run at least ``num_stages`` once they start."""

    def __init__(
        self, table: CostModel, stage_counts: Callable[[], Iterable[int]], config: ExitConfig, num_stages: int
    ) -> None:
        super().__init__(table, stage_counts, config)
        self._run_stages = num_stages

    def lead_s(self, stage: int) -> float:
        return self.slice_s(stage, self._run_stages, 1)

    def give_up_at(self, stage: int) -> None:
        for s in range(stage, stage + self._run_stages):
            super().give_up_at(s)


class _DynamicBatch:
    """A batch is due when it is full or its oldest unit has waited long enough."""

    def __init__(self, order: _ArrivalOrder, cost: ExitCost, config: DynamicBatchingConfig, num_stages: int) -> None:
        self._order = order
        self._cost = cost
        self._config = config
        self._run_stages = num_stages

    def wakeup_s(self, now_s: float, running: Collection[Slice]) -> float | None:
        if len(running) >= self._config.num_executors or not self._order.num_queued:
            return None
        return max(now_s, self._order.oldest_s() + self._config.max_delay_s)

    def next(self, now_s: float, running: Collection[Slice]) -> Pick | None:
        if len(running) >= self._config.num_executors:
            return None
        if self._order.onward:
            units = self._order.onward.popleft()
            stage = units[0].stage
            end_s = now_s + self._cost.slice_s(stage, 1, len(units))
            return self._pick(units, [unit for unit in units if unit.deadline_s < end_s], stage, 1)
        return self._start_batch(now_s) if self._is_due(now_s) else None

    def _is_due(self, now_s: float) -> bool:
        if self._order.num_queued >= self._config.max_batch:
            return True
        return self._order.num_queued > 0 and now_s >= self._order.oldest_s() + self._config.max_delay_s

    def _start_batch(self, now_s: float) -> Pick:
        """Up to a full batch in order of arrival, without those that would be late after it."""
        alike = self._order.alike()
        size = min(len(alike), self._config.max_batch)
        end_s = now_s + self._cost.slice_s(0, self._run_stages, size)
        units: list[Unit] = []
        late: list[Unit] = []
        for unit in alike:
            if len(units) - len(late) == size:
                break
            units.append(unit)
            if unit.deadline_s < end_s:
                late.append(unit)
        self._order.num_queued -= len(units)
        return self._pick(units, late, 0, self._run_stages)

    def _pick(self, units: list[Unit], late: list[Unit], stage: int, num_stages: int) -> Pick:
        on_time = [unit for unit in units if unit not in late]
        predicted_s = self._cost.slice_s(stage, num_stages, len(on_time)) if on_time else 0.0
        return Pick(on_time, stage, num_stages, predicted_s, late)
