"""Admission to slots: choices of a chat on an engine that batches by itself, and whatever else holds one for a while.

Tenants take turns by joules (``schedulers.fair_queue``). What a turn takes is a guess: it is charged as predicted when
it starts and corrected when it ends, and a tenant whose turns took longer than predicted is charged so much more from
then on. Inside a tenant the smallest rank goes first, then the nearest deadline. A unit runs one slice, from the slot
to its end; slots and held bytes (of the key-value cache) bound how many run, and nobody overtakes one that has to wait
for bytes. A unit whose deadline passes while it waits is refused; so is one whose turn it is, if it would end late and
others wait.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from schedulers.cost import CostModel
from schedulers.fair_queue import FairQueue, Weights
from schedulers.kernel import Kernel
from schedulers.policy import After, Limits, Pick, Policy, Slice, Unit

_MIN_S = 1e-6
"""Even work predicted to cost nothing takes a turn."""


@dataclass(frozen=True, slots=True)
class ChatWork:
    """``predicted_s``: busy seconds. ``rank``: inside the tenant the smallest goes first.

    The report of a slice is the seconds that it took of the engine; 0 if it never began.

    Raises:
        ValueError: ``predicted_s`` is negative or not finite.
    """

    predicted_s: float
    rank: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.predicted_s < math.inf:
            raise ValueError(f"predicted_s is {self.predicted_s}; need a finite number >= 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatConfig:
    """``max_running``: slots. ``max_held_bytes``: of those that run; one alone may hold more. ``weights``: of tenants.

    Raises:
        ValueError: a bound is below 1.
    """

    max_running: int
    max_waiting: int = 1 << 30
    max_held_bytes: int = 1 << 62
    weights: Weights = field(default_factory=dict)


def chat(config: ChatConfig, model: CostModel | None = None) -> Kernel:
    """Admits units to slots. The kinds of ``model`` are tenants."""
    limits = Limits(
        max_running=config.max_running, max_waiting=config.max_waiting, max_held_bytes=config.max_held_bytes
    )
    order = ChatOrder(config.weights)
    cost = ChatCost(order, model or CostModel(), config.max_running)
    progress = ChatProgress(order, cost)
    return Kernel(
        Policy(order=order, batch=ChatBatch(order, cost, limits), cost=cost, progress=progress, limits=limits)
    )


class ChatOrder:
    """Tenants in turn."""

    def __init__(self, weights: Weights) -> None:
        self.queue: FairQueue[Unit] = FairQueue(weights)

    def __len__(self) -> int:
        return len(self.queue)

    def __iter__(self) -> Iterator[Unit]:
        return iter(self.queue)

    def add(self, unit: Unit) -> None:
        """A new unit waits."""
        self.queue.add(unit)

    def add_again(self, units: list[Unit]) -> None:
        """Never: a unit runs one slice."""
        raise AssertionError(f"{len(units)} units go on after their only slice")

    def remove(self, unit: Unit) -> None:
        """Take one out."""
        self.queue.remove(unit)

    def rest(self) -> None:
        """No unit is left."""
        self.queue.rest()

    def victim(self, newcomer: Unit) -> Unit | None:
        """The last unit of the tenant furthest over its share, or one of the newcomer's own that is less urgent."""
        return self.queue.victim(newcomer) or self.queue.less_urgent(newcomer)


class ChatCost:
    """Predictions, raised by as much as a tenant's were too low of late; never lowered."""

    def __init__(self, order: ChatOrder, model: CostModel, slots: int) -> None:
        self._order = order
        self._model = model
        self._slots = slots

    def joules(self, unit: Unit) -> float:
        """As predicted and learnt."""
        return float(max(_MIN_S, unit.work.predicted_s, self._expected_s(unit)) * self._model.watts)

    def _expected_s(self, unit: Unit) -> float:
        return self._model.batch_s(unit.tenant, 1, unit.work.predicted_s)

    def learn(self, unit: Unit, used_s: float) -> float:
        """A turn took so long. Returns the joules that its charge was too low by."""
        if used_s > 0.0:
            self._model.observe(unit.tenant, 1, used_s, unit.work.predicted_s)
        return float(used_s * self._model.watts - unit.joules)

    def lead_s(self, stage: int) -> float:
        """A unit waits until its deadline."""
        return 0.0

    def is_hopeless(self, unit: Unit, now_s: float) -> bool:
        """Whether it would end late if it began now, by what was predicted and by what its tenant's turns took."""
        expected_s: float = min(unit.work.predicted_s, self._expected_s(unit))
        return now_s + expected_s > unit.deadline_s

    def remaining_s(self, unit: Unit) -> float:
        """All of it: what a running one has done is not known here."""
        return float(unit.work.predicted_s)

    def queued_s(self, now_s: float, running: Collection[Slice]) -> float:
        """As if the slots shared the rest evenly."""
        waiting_s = math.fsum(unit.work.predicted_s for unit in self._order)
        running_s = math.fsum(max(0.0, one.started_s + one.predicted_s - now_s) for one in running)
        return (waiting_s + running_s) / self._slots

    def pass_time(self, now_s: float) -> None:
        """Nothing changes with time."""

    def observe(self, ended: Slice, elapsed_s: float) -> None:
        """What counts is reported of each unit (``ChatProgress``)."""


class ChatProgress:
    """One slice, then the end."""

    hands_over = False

    def __init__(self, order: ChatOrder, cost: ChatCost) -> None:
        self._order = order
        self._cost = cost

    def admit(self, unit: Unit) -> None:
        """Nothing is refused."""
        unit.rank = (float(unit.work.rank), unit.deadline_s)

    def after(self, ended: Slice, units: list[Unit], reports: list[Any]) -> After:
        """Correct what was charged."""
        for unit, used_s in zip(units, reports, strict=True):
            self._order.queue.correct(unit.tenant, self._cost.learn(unit, used_s))
        return After(units, [], [])

    def dropped(self, ended: Slice, unit: Unit, report: Any) -> None:
        """It is charged for what it took, as far as anybody says."""
        if report is not None:
            self._order.queue.correct(unit.tenant, self._cost.learn(unit, report))

    def overtaken(self, unit: Unit) -> int | None:
        """Nothing can be answered before the end."""
        return None

    def nears_end(self, unit: Unit) -> bool:
        """Every unit is finished here."""
        return True


class ChatBatch:
    """Whoever is next, as soon as there is a slot and the bytes."""

    def __init__(self, order: ChatOrder, cost: ChatCost, limits: Limits) -> None:
        self._order = order
        self._cost = cost
        self._limits = limits

    def wakeup_s(self, now_s: float, running: Collection[Slice]) -> float | None:
        """Never: slots come free by events."""
        return None

    def next(self, now_s: float, running: Collection[Slice]) -> Pick | None:
        """A slot for one unit."""
        if len(running) >= self._limits.max_running or not self._order.queue:
            return None
        queue = self._order.queue
        unit = queue.first()
        if len(queue) > 1 and self._cost.is_hopeless(unit, now_s):
            queue.remove(unit)
            return Pick([], 0, 1, 0.0, [unit])
        held = sum(other.held_bytes for one in running for other in one.units.values())
        if running and held + unit.held_bytes > self._limits.max_held_bytes:
            return None
        queue.take(1)
        return Pick([unit], 0, 1, unit.work.predicted_s)
