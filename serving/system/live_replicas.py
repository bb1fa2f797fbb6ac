"""How many replicas of each inner deployment this process may send calls to now, as its routers know it.

A module of its own: Serve sends ``serving.delivery.router`` to other processes by value, where its globals are copies.
"""

from __future__ import annotations

from collections.abc import Callable

_COUNTS: dict[str, Callable[[], int]] = {}


def register(deployment: str, count: Callable[[], int]) -> None:
    """Called by a router: ask it from now on. The last one counts."""
    _COUNTS[deployment] = count


def num_live(deployment: str) -> int:
    """Those that the controller says are healthy, without those that were found dead since. 0 before the first call."""
    count = _COUNTS.get(deployment)
    return 0 if count is None else count()
