"""How long a tenant waits where tenants take turns: for its own requests, and for as much of the others.

In the fluid model of fair queueing (A. Demers, S. Keshav, S. Shenker, SIGCOMM 1989), what a tenant has waiting is done
when each other tenant has had as much by weight, or has nothing left: after ``q_i + sum of min(q_j, q_i * w_j / w_i)``.
Where one tenant floods, its own requests see the whole queue, and those of the others see little of it.
"""

from __future__ import annotations

import math

from schedulers.fair_queue import EQUAL, Weights, checked


class FairWait:
    """Predicted seconds that are outstanding, by tenant. ``wait_s`` is O(tenants that have any).

    Raises: ValueError: a weight is not finite and positive.
    """

    def __init__(self, weights: Weights = EQUAL) -> None:
        self._weights = checked(weights)
        #: Tenant -> seconds and how many requests they are of.
        self._waiting: dict[str, tuple[float, int]] = {}

    def add(self, tenant: str, seconds: float) -> None:
        """A request comes that will take so long."""
        before_s, count = self._waiting.get(tenant, (0.0, 0))
        self._waiting[tenant] = (before_s + seconds, count + 1)

    def remove(self, tenant: str, seconds: float) -> None:
        """One that came is gone, in whatever way."""
        before_s, count = self._waiting[tenant]
        if count == 1:
            del self._waiting[tenant]  # rounding must not add up
        else:
            self._waiting[tenant] = (max(0.0, before_s - seconds), count - 1)

    @property
    def total_s(self) -> float:
        """Of all tenants."""
        return math.fsum(seconds for seconds, _ in self._waiting.values())

    def wait_s(self, tenant: str, seconds: float) -> float:
        """What runs before a request of ``seconds`` that comes now is done, itself left out. At most ``total_s``."""
        own_s, weight = self._waiting.get(tenant, (0.0, 0))[0], self._weights.get(tenant, 1.0)
        turns_s = (own_s + seconds) / weight
        return own_s + math.fsum(
            min(other_s, turns_s * self._weights.get(other, 1.0))
            for other, (other_s, _) in self._waiting.items()
            if other != tenant
        )
