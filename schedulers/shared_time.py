"""Divides a replica's busy time among the requests that run together.

While ``n`` requests run, each is charged ``1/n`` of the time that passes. The charges of all requests add up to the
time in which at least one ran: nothing is charged twice and nothing is lost, which makes them fit for quotas.

With a clock that advances by ``dt/n``, the charge of a request is what that clock advanced while it ran: O(1) an event.
"""

from __future__ import annotations


class SharedTime:
    """The clock of one replica. Times come in as arguments and must not run backwards."""

    def __init__(self) -> None:
        self._num_running = 0
        self._at_s = 0.0
        self._shared_s = 0.0
        self._busy_s = 0.0

    @property
    def num_running(self) -> int:
        """Requests between ``enter`` and ``leave``."""
        return self._num_running

    def busy_s(self, now_s: float) -> float:
        """Seconds in which at least one request ran."""
        self.read(now_s)
        return self._busy_s

    def read(self, now_s: float) -> float:
        """The shared clock; what a request is charged is the difference of two readings."""
        elapsed_s = max(0.0, now_s - self._at_s)
        self._at_s = max(self._at_s, now_s)
        if self._num_running:
            self._shared_s += elapsed_s / self._num_running
            self._busy_s += elapsed_s
        return self._shared_s

    def enter(self, now_s: float) -> float:
        """A request starts to run. Returns the reading at its start."""
        reading = self.read(now_s)
        self._num_running += 1
        return reading

    def leave(self, now_s: float) -> float:
        """A request has ended. Returns the reading at its end.

        Raises:
            ValueError: none is running.
        """
        if not self._num_running:
            raise ValueError("no request is running; each leaves once")
        reading = self.read(now_s)
        self._num_running -= 1
        return reading
