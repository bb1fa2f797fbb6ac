"""Slots that tenants share: fair between tenants by seconds of service, in order of rank inside each.

Start-time fair queueing (P. Goyal, H. M. Vin, H. Cheng, "Start-time fair queueing", SIGCOMM 1996): a tenant's turns
follow each other in virtual time, each as far behind the one before as that takes; whoever stands earliest goes next,
and virtual time is where the turn taken last began. Differs from the paper: how long a turn takes is known only
afterwards. It is booked as predicted when it is taken and corrected when it ends, and a tenant whose turns took longer
than predicted is booked so much more from then on. A turn that runs is not interrupted: one that is predicted to be
long can be kept off the last free slot (``take``).

Against ``fair_queue``: that one orders samples whose cost a table knows, thousands of them; this one a few hundred
pieces of work whose cost is a guess that the caller can influence.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Iterator
from typing import Generic, TypeVar

from schedulers.fair_queue import EQUAL, Weights, checked

_KEPT = 0.8
"""Of what was learnt about a tenant's predictions, so much stays when a turn ends."""
_MIN_BOOKED_S = 1e-6
"""Even work predicted to cost nothing takes a turn."""


class Turn:
    """One piece of work that wants a slot. Make a new one each time; its queue owns what begins with an underscore.

    ``rank``: inside the tenant the smallest goes first, then the one that came first.
    """

    def __init__(self, tenant: str, rank: int, predicted_s: float) -> None:
        if not 0.0 <= predicted_s < math.inf:
            raise ValueError(f"predicted_s is {predicted_s}; need a finite number >= 0")
        self.tenant = tenant
        self.rank = rank
        self.predicted_s = predicted_s
        self._number = 0
        self._booked_s = 0.0

    def _order(self) -> tuple[int, int]:
        return self.rank, self._number


TurnT = TypeVar("TurnT", bound=Turn)


class _Tenant(Generic[TurnT]):
    """What is known of one tenant. ``next_tag``: where its next turn begins, in virtual time."""

    __slots__ = ("next_tag", "predicted_s", "used_s", "waiting", "weight")

    def __init__(self) -> None:
        self.weight = 1.0
        self.next_tag = 0.0
        self.waiting: list[TurnT] = []
        self.predicted_s = 0.0
        self.used_s = 0.0

    def expected_s(self, turn: Turn) -> float:
        """The prediction, raised by as much as this tenant's were too low of late; never lowered."""
        ratio = self.used_s / self.predicted_s if self.predicted_s > 0.0 else 1.0
        return max(_MIN_BOOKED_S, turn.predicted_s * max(1.0, ratio))

    def learn(self, predicted_s: float, used_s: float) -> None:
        self.predicted_s = _KEPT * self.predicted_s + predicted_s
        self.used_s = _KEPT * self.used_s + used_s


class SharedSlots(Generic[TurnT]):
    """Who waits and who goes next; the caller counts the slots. ``max_waiting``: turns that wait, of all tenants.
    ``weights``: of tenants; they may change.

    Grows with the number of tenants only.

    Raises:
        ValueError: ``max_waiting`` is negative, or a weight not finite and positive.
    """

    def __init__(self, max_waiting: int, weights: Weights = EQUAL) -> None:
        if max_waiting < 0:
            raise ValueError(f"max_waiting is {max_waiting}; need 0 or more")
        self._max_waiting = max_waiting
        self._weights = checked(weights)
        self._tenants: dict[str, _Tenant[TurnT]] = {}
        #: Those that have something waiting.
        self._wanting: dict[str, _Tenant[TurnT]] = {}
        self._virtual_s = 0.0
        self._num_added = 0
        self._num_waiting = 0

    def __len__(self) -> int:
        """Turns that wait."""
        return self._num_waiting

    def __iter__(self) -> Iterator[TurnT]:
        for tenant in self._wanting.values():
            yield from tenant.waiting

    def add(self, turn: TurnT, num_free: int = 0) -> TurnT | None:
        """Let a turn wait. Returns the one that had to go to make room, which may be this one; None if there was room.

        It is the last turn of the tenant that has most waiting for its weight: a tenant that fills the queue refuses
        itself. ``num_free``: slots that are free now, for whose turns room is made besides.
        """
        self._num_added += 1
        turn._number = self._num_added
        mine = self._tenants.get(turn.tenant)
        if mine is None:
            mine = self._tenants[turn.tenant] = _Tenant()
        mine.weight = self._weights.get(turn.tenant, 1.0)
        if not mine.waiting:  # what it did not use while it had nothing to do, it has not saved up
            mine.next_tag = max(mine.next_tag, self._virtual_s)
            self._wanting[turn.tenant] = mine
        insort(mine.waiting, turn, key=_order)
        self._num_waiting += 1
        if self._num_waiting <= self._max_waiting + num_free:
            return None
        # Of equals the newcomer's own: nobody is put out for one who would then hold as much.
        fullest = max(self._wanting.values(), key=lambda tenant: (len(tenant.waiting) / tenant.weight, tenant is mine))
        last = fullest.waiting[-1]
        self._drop(fullest, last)
        return last

    def remove(self, turn: TurnT) -> bool:
        """Take a turn out that waits. Returns whether it did."""
        tenant = self._tenants.get(turn.tenant)
        if tenant is None or turn not in tenant.waiting:
            return False
        self._drop(tenant, turn)
        return True

    def _drop(self, tenant: _Tenant[TurnT], turn: TurnT) -> None:
        tenant.waiting.remove(turn)
        self._num_waiting -= 1
        if not tenant.waiting:
            del self._wanting[turn.tenant]

    def take(self, longest_s: float = math.inf) -> TurnT | None:
        """The turn that goes next, among those expected to take no longer than ``longest_s``; None if there is none.

        Every turn taken must be given to ``finish``.
        """
        best: _Tenant[TurnT] | None = None
        found: TurnT | None = None
        for tenant in self._wanting.values():
            if best is not None and tenant.next_tag >= best.next_tag:
                continue
            turn = next((turn for turn in tenant.waiting if tenant.expected_s(turn) <= longest_s), None)
            if turn is not None:
                best, found = tenant, turn
        if best is None or found is None:
            return None
        self._drop(best, found)
        self._virtual_s = max(self._virtual_s, best.next_tag)
        found._booked_s = best.expected_s(found)
        best.next_tag += found._booked_s / best.weight
        return found

    def finish(self, turn: TurnT, used_s: float) -> None:
        """A turn that was taken has ended after so many seconds of service; 0 if it never began."""
        tenant = self._tenants[turn.tenant]
        tenant.next_tag += (used_s - turn._booked_s) / tenant.weight
        if used_s > 0.0:
            tenant.learn(turn.predicted_s, used_s)


def _order(turn: Turn) -> tuple[int, int]:
    return turn._order()
