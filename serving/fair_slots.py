"""A semaphore whose waiters go in the order of ``schedulers.shared_slots``: tenants in turn, by seconds of service."""

from __future__ import annotations

import asyncio
import math

from schedulers.shared_slots import SharedSlots, Turn


class SlotTurn(Turn):
    """One use of a slot, by whoever waits for it."""

    def __init__(self, tenant: str = "", rank: int = 0, predicted_s: float = 0.0) -> None:
        super().__init__(tenant, rank, predicted_s)
        self._granted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()


class FairSlots:
    """``slots`` at a time; ``max_waiting`` wait, and who is one too many is refused. Use from one event loop."""

    def __init__(self, slots: int, max_waiting: int = 1 << 30) -> None:
        self._free = slots
        self._total = slots
        self._shared: SharedSlots[SlotTurn] = SharedSlots(max_waiting)

    @property
    def running(self) -> int:
        """Slots in use."""
        return self._total - self._free

    @property
    def waiting(self) -> int:
        """Who wants one."""
        return len(self._shared)

    async def acquire(self, turn: SlotTurn) -> bool:
        """Take a slot, waiting for one if need be. A cancelled waiter leaves no trace.

        Returns: False when there is no room to wait, or when room was needed for a tenant with less waiting.
        """
        refused = self._shared.add(turn, num_free=self._free)
        if refused is not None:
            _tell(refused, False)
        self._hand_out()
        try:
            return await turn._granted
        except asyncio.CancelledError:
            self._shared.remove(turn)
            if turn._granted.done() and not turn._granted.cancelled() and turn._granted.result():
                self.release(turn, 0.0)  # the slot was given just before the cancellation arrived
            raise

    def release(self, turn: SlotTurn, used_s: float) -> None:
        """Give a slot back after so many seconds of service; the next waiter has it at once."""
        self._shared.finish(turn, used_s)
        self._free += 1
        self._hand_out()

    def _hand_out(self) -> None:
        while self._free and (turn := self._shared.take(math.inf)) is not None:
            if _tell(turn, True):
                self._free -= 1
            else:  # its waiter is about to say that it has given up
                self._shared.finish(turn, 0.0)


def _tell(turn: SlotTurn, granted: bool) -> bool:
    """Returns whether it is still waiting to be told."""
    if turn._granted.done():
        return False
    turn._granted.set_result(granted)
    return True
