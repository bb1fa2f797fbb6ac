"""A semaphore whose waiters go in the order of ``schedulers.policies.chat``: tenants in turn, by what they use."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

from schedulers.cost import CostModel
from schedulers.fair_queue import EQUAL, Weights
from schedulers.policies.chat import ChatConfig, ChatWork, chat
from schedulers.types import (
    Event,
    Reject,
    RejectReason,
    RunSlice,
    SliceFinished,
    SliceResult,
    UnitArrived,
    UnitCancelled,
)


class SlotTurn:
    """One use of a slot, by whoever waits for it. ``refused``: why there was none, once ``acquire`` has said so."""

    def __init__(
        self,
        tenant: str = "",
        rank: int = 0,
        predicted_s: float = 0.0,
        *,
        deadline_s: float = math.inf,
        held_bytes: int = 0,
        elsewhere_j: float = 0.0,
    ) -> None:
        self.arrival = UnitArrived(
            unit_id=self,
            work=ChatWork(predicted_s, rank),
            tenant=tenant,
            deadline_s=deadline_s,
            held_bytes=held_bytes,
            elsewhere_j=elsewhere_j,
        )
        self.refused: RejectReason | None = None
        self.slice_id = -1
        self.granted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()


class FairSlots:
    """``slots`` at a time, which hold ``max_held_bytes`` together, unless one alone holds more; ``max_waiting`` wait,
    and who is one too many is refused. Use from one event loop.

    ``watts``: of whatever gives the slots; turns are charged in joules.

    Deadlines of turns are on ``clock``; one that passes is noticed when anybody comes or goes, so that whoever wants to
    hear of it at once sets a timeout of its own.
    """

    def __init__(
        self,
        slots: int,
        max_waiting: int = 1 << 30,
        *,
        max_held_bytes: int = 1 << 62,
        weights: Weights = EQUAL,
        watts: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._slots = slots
        self._max_waiting = max_waiting
        self._clock = clock
        config = ChatConfig(
            max_running=slots, max_waiting=max(1, max_waiting), max_held_bytes=max_held_bytes, weights=weights
        )
        self._kernel = chat(config, CostModel(watts=watts))

    @property
    def running(self) -> int:
        """Slots in use."""
        return self._kernel.counts().running

    @property
    def waiting(self) -> int:
        """Who wants one."""
        return self._kernel.counts().waiting

    async def acquire(self, turn: SlotTurn) -> bool:
        """Take a slot, waiting for one if need be. A cancelled waiter leaves no trace.

        Returns: False when there is no room to wait, when room was needed for a tenant with less waiting, or when the
        deadline passed (``turn.refused``).
        """
        if not self._max_waiting and self.running == self._slots:
            turn.refused = RejectReason.QUEUE_FULL
            return False
        self._feed(turn.arrival)
        try:
            return await turn.granted
        except asyncio.CancelledError:
            if turn.granted.done() and not turn.granted.cancelled() and turn.granted.result():
                self.release(turn, 0.0)  # the slot was given just before the cancellation arrived
            else:
                self._feed(UnitCancelled(unit_id=turn))
            raise

    def release(self, turn: SlotTurn, used_s: float) -> None:
        """Give a slot back after so many seconds of service; the next waiter has it at once."""
        result = SliceResult(unit_id=turn, report=used_s)
        self._feed(SliceFinished(slice_id=turn.slice_id, results=(result,), elapsed_s=used_s))

    def _feed(self, event: Event) -> None:
        abandoned: list[SlotTurn] = []
        for decision in self._kernel.handle(self._clock(), event):
            if isinstance(decision, RunSlice):
                (turn,) = decision.unit_ids
                turn.slice_id = decision.slice_id
                if turn.granted.done():  # its waiter is about to say that it has given up
                    abandoned.append(turn)
                else:
                    turn.granted.set_result(True)
            elif isinstance(decision, Reject):
                turn = decision.unit_id
                turn.refused = decision.reason
                if not turn.granted.done():
                    turn.granted.set_result(False)
        for turn in abandoned:
            self.release(turn, 0.0)
