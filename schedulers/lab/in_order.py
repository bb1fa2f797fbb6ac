"""What a plain server does: requests in one order, in batches that run from the first slice to the last.

The order is that of arrival or of deadlines. A batch is the first request and those behind it that may share its
slices; nobody joins or leaves it on the way, and tenants and priorities count for nothing. Plain, but not weakened: an
executor never idles while somebody waits, and who cannot be in time any more is given up before it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, TypeAlias

from schedulers.kernel import Kernel
from schedulers.ordered_queue import OrderedQueue
from schedulers.policy import After, Limits, Pick, Policy, Slice, Unit

By: TypeAlias = Literal["arrival", "deadline"]
_LOOK = 4
"""Units that are looked at for those of one key, by places."""


@dataclass(frozen=True, slots=True)
class WholeWork:
    """``alone_s``: predicted seconds from the first slice to the last, alone.

    Raises: ValueError: not positive.
    """

    alone_s: float

    def __post_init__(self) -> None:
        if not self.alone_s > 0.0:
            raise ValueError(f"alone_s is {self.alone_s}; need a number > 0")


def in_order(by: By, batch_s: Callable[[Sequence[Any]], float], *, max_batch: int, num_executors: int) -> Kernel:
    """``batch_s``: predicted seconds of a batch of such works."""
    order = _InOrder(by)
    cost = _WholeCost(order, num_executors)
    limits = Limits(max_waiting=1 << 30, max_running=max_batch * num_executors)
    batch = _WholeBatch(order, batch_s, max_batch, num_executors)
    return Kernel(Policy(order=order, batch=batch, cost=cost, progress=_Whole(), limits=limits))


class _InOrder:
    """One queue."""

    def __init__(self, by: By) -> None:
        self._by = by
        self.queue: OrderedQueue[tuple[float, int, Unit]] = OrderedQueue()
        self.waiting_s = 0.0

    def _entry(self, unit: Unit) -> tuple[float, int, Unit]:
        return (unit.deadline_s if self._by == "deadline" else unit.arrived_s, unit.number, unit)

    def __len__(self) -> int:
        return len(self.queue)

    def __iter__(self) -> Iterator[Unit]:
        return (entry[2] for entry in self.queue)

    def add(self, unit: Unit) -> None:
        self.queue.add(self._entry(unit))
        self.waiting_s += unit.work.alone_s

    def add_again(self, units: list[Unit]) -> None:
        raise AssertionError(f"{len(units)} units go on after their only slice")

    def remove(self, unit: Unit) -> None:
        self.queue.remove(self._entry(unit))
        self.waiting_s = max(0.0, self.waiting_s - unit.work.alone_s) if self.queue else 0.0

    def rest(self) -> None: ...

    def victim(self, newcomer: Unit) -> Unit | None:
        return None


class _WholeCost:
    def __init__(self, order: _InOrder, num_executors: int) -> None:
        self._order = order
        self._num_executors = num_executors

    def joules(self, unit: Unit) -> float:
        return 0.0

    def lead_s(self, stage: int) -> float:
        return 1.0  # times the unit's size, which is what it takes

    def remaining_s(self, unit: Unit) -> float:
        return float(unit.work.alone_s)

    def queued_s(self, now_s: float, running: Collection[Slice]) -> float:
        left_s = sum(max(0.0, one.started_s + one.predicted_s - now_s) for one in running)
        return (self._order.waiting_s + left_s) / self._num_executors

    def pass_time(self, now_s: float) -> None: ...

    def observe(self, ended: Slice, elapsed_s: float) -> None: ...


class _Whole:
    hands_over = False

    def admit(self, unit: Unit) -> None:
        unit.size = unit.work.alone_s

    def after(self, ended: Slice, units: list[Unit], reports: list[Any]) -> After:
        return After(units, [], [])

    def dropped(self, ended: Slice, unit: Unit, report: Any) -> None: ...

    def overtaken(self, unit: Unit) -> int | None:
        return None

    def nears_end(self, unit: Unit) -> bool:
        return True


class _WholeBatch:
    def __init__(
        self, order: _InOrder, batch_s: Callable[[Sequence[Any]], float], max_batch: int, num_executors: int
    ) -> None:
        self._order = order
        self._batch_s = batch_s
        self._max_batch = max_batch
        self._num_executors = num_executors

    def wakeup_s(self, now_s: float, running: Collection[Slice]) -> float | None:
        return None

    def next(self, now_s: float, running: Collection[Slice]) -> Pick | None:
        queue = self._order.queue
        if len(running) >= self._num_executors or not queue:
            return None
        first = queue.first()[2]
        alike = [
            entry[2]
            for entry in islice(queue, _LOOK * self._max_batch)
            if entry[2] is first or (first.batch_key is not None and entry[2].batch_key == first.batch_key)
        ]
        units = alike[: self._max_batch]
        for unit in units:
            self._order.remove(unit)
        return Pick(units, 0, 1, self._batch_s([unit.work for unit in units]))
