"""Turns what the stores tell into metrics."""

from __future__ import annotations

from serving.stores.breaker import BreakerState
from serving.telemetry import metrics

_STATES = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}
_STORE = "redis"


class StoreMetrics:
    """A ``StoreObserver`` that counts."""

    def __init__(self) -> None:
        metrics.BREAKER_STATE.labels(_STORE).set(0)

    def breaker_changed(self, state: BreakerState) -> None:
        """Show where the breaker stands."""
        metrics.BREAKER_STATE.labels(_STORE).set(_STATES[state])

    def looked_up(self, num_hits: int, num_misses: int) -> None:
        """Count what Redis found."""
        metrics.CACHE_LOOKUPS.labels("hit").inc(num_hits)
        metrics.CACHE_LOOKUPS.labels("miss").inc(num_misses)

    def call_finished(self, operation: str, outcome: str, elapsed_s: float) -> None:
        """Count failures, and time every call."""
        metrics.STORE_SECONDS.labels(operation).observe(elapsed_s)
        if outcome != "ok":
            metrics.STORE_ERRORS.labels(_STORE, outcome).inc()

    def fell_back(self, operation: str) -> None:
        """Count what was served without Redis."""
        metrics.CACHE_LOOKUPS.labels("unavailable").inc()

    def value_rejected(self) -> None:
        """Count corrupt or forged values."""
        metrics.CACHE_LOOKUPS.labels("corrupt").inc()
