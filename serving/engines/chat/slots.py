"""Slots of an engine that runs a bounded number of requests at a time: who waits, who goes next."""

from __future__ import annotations

import asyncio
import heapq
from itertools import count
from typing import Final


class PrioritySlots:
    """A semaphore whose waiters go by priority, 0 first, then by arrival."""

    def __init__(self, slots: int) -> None:
        self._free = slots
        self._total: Final = slots
        self._order = count()
        self._waiters: list[tuple[int, int, asyncio.Future[None]]] = []

    @property
    def running(self) -> int:
        """Slots in use."""
        return self._total - self._free

    @property
    def waiting(self) -> int:
        """Who wants one."""
        return sum(not future.done() for *_, future in self._waiters)

    async def acquire(self, priority: int) -> None:
        """Take a slot, waiting for one if need be. A cancelled waiter leaves no trace."""
        if self._free and not self._waiters:
            self._free -= 1
            return
        future = asyncio.get_running_loop().create_future()
        entry = (priority, next(self._order), future)
        heapq.heappush(self._waiters, entry)
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():  # the slot was given just before the cancellation arrived
                self.release()
            raise
        finally:
            self._forget(entry)

    def release(self) -> None:
        """Give a slot back; the first waiter has it at once."""
        while self._waiters:
            *_, future = heapq.heappop(self._waiters)
            if not future.done():
                future.set_result(None)
                return
        self._free += 1

    def _forget(self, entry: tuple[int, int, asyncio.Future[None]]) -> None:
        if entry in self._waiters:
            self._waiters.remove(entry)
            heapq.heapify(self._waiters)
