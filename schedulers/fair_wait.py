"""How long a tenant waits where tenants take turns: for its own requests, and for as much of the others.

In the fluid model of fair queueing (A. Demers, S. Keshav, S. Shenker, SIGCOMM 1989), what a tenant has waiting is done
when each other tenant has had as much by weight, or has nothing left: after ``q_i + sum of min(q_j, q_i * w_j / w_i)``.
Where one tenant floods, its own requests see the whole queue, and those of the others see little of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from schedulers.fair_queue import EQUAL, Weights, checked


class _Waiting:
    """Of one tenant."""

    __slots__ = ("count", "seconds", "weight")

    def __init__(self, weight: float) -> None:
        self.seconds = 0.0
        self.weight = weight
        self.count = 0


class FairWait:
    """Predicted seconds that are outstanding, by tenant. ``wait_s`` is O(tenants that have any).

    Raises: ValueError: a weight is not finite and positive.
    """

    def __init__(self, weights: Weights = EQUAL) -> None:
        self._weights = checked(weights)
        self._waiting: dict[str, _Waiting] = {}

    def add(self, tenant: str, seconds: float) -> None:
        """A request comes that will take so long."""
        waiting = self._waiting.get(tenant)
        if waiting is None:
            waiting = self._waiting[tenant] = _Waiting(self._weights.get(tenant, 1.0))
        waiting.seconds += seconds
        waiting.count += 1

    def remove(self, tenant: str, seconds: float) -> None:
        """One that came is gone, in whatever way."""
        waiting = self._waiting[tenant]
        waiting.count -= 1
        waiting.seconds = max(0.0, waiting.seconds - seconds)
        if waiting.count == 0:
            del self._waiting[tenant]  # rounding must not add up

    @property
    def total_s(self) -> float:
        """Of all tenants."""
        return math.fsum(waiting.seconds for waiting in self._waiting.values())

    def wait_s(self, tenant: str, seconds: float) -> float:
        """What runs before a request of ``seconds`` that comes now is done, itself left out. At most ``total_s``."""
        own = self._waiting.get(tenant)
        own_s = 0.0 if own is None else own.seconds
        turns_s = (own_s + seconds) / self._weights.get(tenant, 1.0)
        total_s = 0.0
        for waiting in self._waiting.values():  # every request asks this: no calls
            limit_s = turns_s * waiting.weight
            total_s += waiting.seconds if waiting.seconds < limit_s else limit_s
        return total_s if own is None else total_s - min(own_s, turns_s * own.weight) + own_s


def turn_s(waiting_s: Mapping[str, float], tenant: str, seconds: float, weights: Weights = EQUAL) -> float:
    """``FairWait.wait_s`` where what waits, by tenant, is looked up and not kept."""
    own_s = waiting_s.get(tenant, 0.0)
    turns_s = (own_s + seconds) / weights.get(tenant, 1.0)
    others = (min(each_s, turns_s * weights.get(other, 1.0)) for other, each_s in waiting_s.items() if other != tenant)
    return own_s + math.fsum(others)
