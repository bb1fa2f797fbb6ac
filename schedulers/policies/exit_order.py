"""Who waits in a network with exits: new units in one fair queue for all tenants, survivors by ``due_s`` at each stage.

What is taken together has one batch key. Of new units the key is that of whoever's turn it is; of survivors, that of
the one that is due first.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from itertools import chain, islice

from schedulers.fair_queue import FairQueue, Weights
from schedulers.ordered_queue import OrderedQueue
from schedulers.policies.stage_choice import StageView
from schedulers.policy import Unit

#: Entries of units that no longer wait are swept out when all entries outnumber twice the good ones by this many. One
#: has as many units as a slice.
_MAX_STALE_AGES = 256


class Survivors:
    """Units that wait at one stage, those due first in front."""

    __slots__ = ("_num_of_key", "queue")

    def __init__(self) -> None:
        self.queue: OrderedQueue[tuple[float, int, Unit]] = OrderedQueue()
        self._num_of_key: dict[Hashable, int] = {}

    def add_all(self, units: list[Unit]) -> None:
        """Let the units of one slice wait."""
        self.queue.add_all([(unit.due_s, unit.number, unit) for unit in units])
        key = units[0].batch_key
        self._num_of_key[key] = self._num_of_key.get(key, 0) + len(units)

    def remove(self, unit: Unit) -> None:
        """Take one out."""
        self.queue.remove((unit.due_s, unit.number, unit))
        self._forget(unit.batch_key, 1)

    def take(self, max_units: int, leader: Unit | None = None) -> list[Unit]:
        """Remove units of one batch key: the ``leader``, or the first one, and those that come first after it."""
        key = leader.batch_key if leader is not None else self.queue.first()[2].batch_key
        if leader is None and len(self._num_of_key) == 1 and key is not None:
            units = [entry[2] for entry in self.queue.take(max_units)]
            self._forget(key, len(units))
            return units
        units = [leader if leader is not None else self.queue.first()[2]]
        if key is not None:
            alike = (unit for _, _, unit in self.queue if unit.batch_key == key and unit is not units[0])
            units = [*units, *islice(alike, max_units - 1)]
        for unit in units:
            self.remove(unit)
        return units

    def view(self, stage: int) -> StageView:
        """What might run there next."""
        due_s, _, unit = self.queue.first()
        key = unit.batch_key
        return (stage, 1 if key is None else self._num_of_key[key], due_s)

    def _forget(self, key: Hashable, count: int) -> None:
        self._num_of_key[key] -= count
        if not self._num_of_key[key]:
            del self._num_of_key[key]


class _Ages:
    """Who began to wait when, oldest first."""

    __slots__ = ("_entries", "_max_entries")

    def __init__(self) -> None:
        #: (when, units); those that moved on are stale.
        self._entries: deque[tuple[float, list[Unit]]] = deque()
        self._max_entries = _MAX_STALE_AGES

    def add(self, since_s: float, units: list[Unit]) -> None:
        """They wait since then, which is no earlier than for those before."""
        self._entries.append((since_s, units))

    def oldest(self, before_s: float) -> Unit | None:
        """The unit that has waited longest where it stands, if that is since earlier than ``before_s``."""
        entries = self._entries
        if len(entries) > self._max_entries:
            self._sweep()
        while entries:
            since_s, units = entries[0]
            for unit in units:
                if unit.is_waiting and unit.waiting_since_s == since_s:
                    return unit if since_s < before_s else None
            entries.popleft()
        return None

    def clear(self) -> None:
        """Nobody waits."""
        self._entries.clear()

    def _sweep(self) -> None:
        kept = [(since_s, _still(since_s, units)) for since_s, units in self._entries]
        self._entries = deque([entry for entry in kept if entry[1]])
        self._max_entries = 2 * len(self._entries) + _MAX_STALE_AGES


def _still(since_s: float, units: list[Unit]) -> list[Unit]:
    return [unit for unit in units if unit.is_waiting and unit.waiting_since_s == since_s]


class ExitOrder:
    """Units by the stage that they need next."""

    def __init__(self, num_stages: int, weights: Weights) -> None:
        self.fresh: FairQueue[Unit] = FairQueue(weights)
        #: Taken out of ``fresh`` and charged, and then left out of a slice: they go before all that is fresh.
        self._called: list[Unit] = []
        #: By stage; nobody waits at the first.
        self._survivors = [Survivors() for _ in range(num_stages)]
        self._num_survivors = 0
        self._new_ages, self._survivor_ages = _Ages(), _Ages()

    def __len__(self) -> int:
        return len(self.fresh) + len(self._called) + self._num_survivors

    def __iter__(self) -> Iterator[Unit]:
        return chain(self._called, self.fresh, (entry[2] for stage in self._survivors for entry in stage.queue))

    def add(self, unit: Unit) -> None:
        """A new unit waits."""
        self.fresh.add(unit)
        self._new_ages.add(unit.waiting_since_s, [unit])

    def add_again(self, units: list[Unit]) -> None:
        """Survivors wait for their next stage."""
        self._survivors[units[0].stage].add_all(units)
        self._num_survivors += len(units)
        self._survivor_ages.add(units[0].waiting_since_s, units)

    def remove(self, unit: Unit) -> None:
        """Take one out from wherever it is; what is left of its charge goes back."""
        if unit.stage:
            self._survivors[unit.stage].remove(unit)
            self._num_survivors -= 1
            self.refund(unit)
        elif unit in self._called:
            self._called.remove(unit)
            self.refund(unit)
        else:
            self.fresh.remove(unit)

    def refund(self, unit: Unit) -> None:
        """A unit that was charged runs no further: its tenant has paid for too much, or too little."""
        self.fresh.correct(unit.tenant, -unit.joules)
        unit.joules = 0.0

    def rest(self) -> None:
        """No unit is left."""
        self.fresh.rest()
        self._new_ages.clear()
        self._survivor_ages.clear()

    def victim(self, newcomer: Unit) -> Unit | None:
        """The last unit of the tenant furthest over its share."""
        return self.fresh.victim(newcomer)

    def take(self, stage: int, max_units: int, leader: Unit | None = None) -> list[Unit]:
        """Remove survivors that may share a slice, ``leader`` or the first one among them."""
        taken = self._survivors[stage].take(max_units, leader)
        self._num_survivors -= len(taken)
        return taken

    def take_new(
        self, max_units: int, earliest_deadline_s: float = -math.inf, few_deadline_s: float | None = None
    ) -> tuple[list[Unit], list[Unit]]:
        """Remove new units that may share a slice, and those met on the way whose deadline is before that
        (``FairQueue.take``)."""
        if not self._called:
            return self.fresh.take_alike(max_units, earliest_deadline_s, few_deadline_s=few_deadline_s)
        key = self._called[0].batch_key
        if key is None:
            return [self._called.pop(0)], []
        units = [unit for unit in self._called if unit.batch_key == key][:max_units]
        self._called = [unit for unit in self._called if unit not in units]
        fresh, late = self.fresh.take_alike(
            max_units - len(units), earliest_deadline_s, key=key, few_deadline_s=few_deadline_s
        )
        return units + fresh, late

    def put_back(self, units: list[Unit]) -> None:
        """Undo ``take`` for these units of one stage; they never stopped waiting."""
        if units[0].stage:
            self._survivors[units[0].stage].add_all(units)
            self._num_survivors += len(units)
        else:
            self._called = units + self._called

    def overdue(self, before_s: float) -> Unit | None:
        """The survivor that has waited longest where it stands, if that is since earlier than ``before_s``."""
        return self._survivor_ages.oldest(before_s)

    def overdue_new(self, before_s: float) -> Unit | None:
        """Of the new units."""
        return self._new_ages.oldest(before_s)

    def put_first(self, unit: Unit) -> None:
        """Have a new unit taken as soon as it is its tenant's turn."""
        if unit not in self._called:
            self.fresh.promote(unit)

    def num_new(self) -> int:
        """Units waiting for the first stage."""
        return len(self._called) + len(self.fresh)

    def stage_counts(self) -> Iterable[int]:
        """Units waiting at each stage."""
        return chain((self.num_new(),), [len(stage.queue) for stage in self._survivors[1:]])

    def views(self) -> list[StageView]:
        """Stages at which units wait, ascending."""
        views: list[StageView] = []
        if self._called:
            head = self._called[0]
            views.append((0, self._num_new_alike(head), head.deadline_s))
        elif len(self.fresh):
            head = self.fresh.first()
            views.append((0, self.fresh.num_alike(head), head.deadline_s))
        if self._num_survivors:
            views += [one.view(stage) for stage, one in enumerate(self._survivors) if one.queue.num_entries]
        return views

    def _num_new_alike(self, head: Unit) -> int:
        """With units that were called, the first of which is ``head``."""
        if head.batch_key is None:
            return 1
        return sum(unit.batch_key == head.batch_key for unit in self._called) + self.fresh.num_alike(head)
