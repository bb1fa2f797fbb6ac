"""How much work may be done again because replicas were lost: a share of the requests of late, and always one replica.

Without a bound, every retry multiplies a fault that kills replicas, until none is left to answer those whom it would
never have touched.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

_NUM_SLOTS = 10


@dataclass(slots=True)
class _Slot:
    number: int
    num_requests: int = 0
    num_retries: int = 0


@dataclass(slots=True)
class RetryBudget:
    """Retries within any ``window_s``: ``share`` of the requests in it, and never fewer than ``floor``, which is what
    one replica may have in flight. Times are seconds on one monotonic clock of the caller.

    Raises:
        ValueError: a number is out of range.
    """

    floor: int
    share: float = 0.1
    window_s: float = 10.0
    _slots: deque[_Slot] = field(default_factory=deque, init=False)

    def __post_init__(self) -> None:
        if self.floor < 1 or not 0.0 <= self.share <= 1.0 or not 0.0 < self.window_s < math.inf:
            raise ValueError(f"{self} is impossible; need floor >= 1, 0 <= share <= 1 and window_s > 0")

    def add_request(self, now_s: float) -> None:
        """A request has come, for the first time."""
        self._slot(now_s).num_requests += 1

    def spend(self, now_s: float, num_retries: int = 1) -> bool:
        """Ask to send so many requests again. False: that would be too many, and none was counted."""
        slot = self._slot(now_s)
        if num_retries > self.left(now_s):
            return False
        slot.num_retries += num_retries
        return True

    def left(self, now_s: float) -> int:
        """Retries that are allowed now."""
        self._slot(now_s)
        num_requests = sum(slot.num_requests for slot in self._slots)
        allowed = max(self.floor, math.floor(self.share * num_requests))
        return max(0, allowed - sum(slot.num_retries for slot in self._slots))

    def _slot(self, now_s: float) -> _Slot:
        """The one of now; those that have left the window are gone."""
        number = math.floor(now_s / self.window_s * _NUM_SLOTS)
        while self._slots and self._slots[0].number <= number - _NUM_SLOTS:
            self._slots.popleft()
        if not self._slots or self._slots[-1].number < number:
            self._slots.append(_Slot(number))
        return self._slots[-1]
