"""A circuit breaker as plain state: no clock, no I/O.

    CLOSED --``failure_threshold`` failures one after another--> OPEN --``open_s`` later, for one probe--> HALF_OPEN
    HALF_OPEN --probe succeeds--> CLOSED            HALF_OPEN --probe fails--> OPEN, for twice as long

Requests pass only while it is CLOSED: probing is a background task's business, so no request pays for a dead store.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum


class BreakerState(Enum):
    """Where the breaker stands; the value is a metric label."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerConfig:
    """When to open, and how long to stay open: ``open_s`` at first, doubling up to ``max_open_s``.

    Raises:
        ValueError: a number is not positive, or ``max_open_s`` is below ``open_s``.
    """

    failure_threshold: int = 3
    open_s: float = 0.25
    max_open_s: float = 5.0

    def __post_init__(self) -> None:
        if self.failure_threshold < 1 or not 0 < self.open_s <= self.max_open_s:
            raise ValueError(f"{self} is impossible; need failure_threshold >= 1 and 0 < open_s <= max_open_s")


class CircuitBreaker:
    """One breaker. Times are seconds on one monotonic clock of the caller."""

    def __init__(self, config: BreakerConfig) -> None:
        self._config = config
        self._state = BreakerState.CLOSED
        self._num_failures = 0
        self._open_s = config.open_s
        self._probe_at_s = 0.0
        self._counted_at_s = -math.inf

    @property
    def state(self) -> BreakerState:
        """Where it stands."""
        return self._state

    @property
    def is_closed(self) -> bool:
        """Whether requests may pass."""
        return self._state is BreakerState.CLOSED

    @property
    def probe_at_s(self) -> float:
        """When the next probe may go, while OPEN."""
        return self._probe_at_s

    def begin_probe(self, now_s: float) -> bool:
        """Ask for the one probe. True at most once until ``record_probe_*`` is called."""
        if self._state is not BreakerState.OPEN or now_s < self._probe_at_s:
            return False
        self._state = BreakerState.HALF_OPEN
        return True

    def record_success(self) -> None:
        """A call went well. While not CLOSED it says nothing: it is the late answer of an older call."""
        self._num_failures = 0

    def record_failure(self, now_s: float, started_s: float) -> None:
        """A call that began at ``started_s`` failed now.

        Calls that were under way when the last failure was counted share its cause and are not counted again: one
        hiccup with many calls in flight is one failure.
        """
        if self._state is not BreakerState.CLOSED or started_s < self._counted_at_s:
            return
        self._num_failures += 1
        self._counted_at_s = now_s
        if self._num_failures >= self._config.failure_threshold:
            self._open(now_s)

    def record_probe_success(self) -> None:
        """The probe went well: close."""
        if self._state is BreakerState.HALF_OPEN:
            self._state = BreakerState.CLOSED
            self._open_s = self._config.open_s

    def record_probe_failure(self, now_s: float) -> None:
        """The probe failed: stay away for twice as long."""
        if self._state is BreakerState.HALF_OPEN:
            self._open_s = min(2 * self._open_s, self._config.max_open_s)
            self._open(now_s)

    def _open(self, now_s: float) -> None:
        self._state = BreakerState.OPEN
        self._num_failures = 0
        self._probe_at_s = now_s + self._open_s
