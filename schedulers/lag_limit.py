"""How many requests a gateway asks for at a time, by how late its event loop runs.

Whatever waits in an event loop goes in order of arrival. A gateway that is sent as much as it can take in, read and
answer is busy with that alone, however fair its queues are: a request then waits at every step for all the others. So
less is let come as long as the loop is late, and more again once it is not: additive increase, multiplicative decrease
(D.-M. Chiu, R. Jain, "Analysis of the increase and decrease algorithms for congestion avoidance in computer networks",
1989). A hundred streams that hardly do anything make nothing late, and are not limited.
"""

from __future__ import annotations

from typing import Final

LATE_S: Final = 0.03
"""A loop that is later than that has too much to do: a request goes round it some ten times."""
LEAST: Final = 32
"""Requests that are asked for in any case, which keep a gateway busy."""
_LATE_LOOKS: Final = 3
"""In a row, before less is asked for."""
_DECREASE: Final = 0.7
_STEPS: Final = 128
"""From nothing to all."""


class LagLimit:
    """``most``: requests at a time, and where it begins.

    Raises:
        ValueError: ``most`` is below 1.
    """

    def __init__(self, most: int) -> None:
        if most < 1:
            raise ValueError(f"most is {most}; need at least 1")
        self._most = most
        self._limit = float(most)
        self._num_late = 0

    @property
    def limit(self) -> int:
        """Requests that should be here at a time."""
        return int(self._limit)

    def observe(self, lag_s: float, num_in: int) -> None:
        """The loop did something so much later than it was due, with so many requests here. One late look says little:
        it may be a pause for garbage, or somebody else on the machine."""
        self._num_late = self._num_late + 1 if lag_s > LATE_S else 0
        if not self._num_late:
            self._limit = min(self._most, self._limit + max(1.0, self._most / _STEPS))
        elif self._num_late >= _LATE_LOOKS and num_in > LEAST:
            self._limit = max(min(LEAST, self._most), _DECREASE * min(self._limit, num_in))
