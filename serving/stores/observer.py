"""What the stores tell whoever measures them. No metrics library here; telemetry implements the protocol."""

from __future__ import annotations

from typing import Protocol

from serving.stores.breaker import BreakerState


class StoreObserver(Protocol):
    """Called on the event loop; must not block and must not raise."""

    def breaker_changed(self, state: BreakerState) -> None:
        """The breaker moved to ``state``."""

    def looked_up(self, num_hits: int, num_misses: int) -> None:
        """A look-up was answered by Redis."""

    def call_finished(self, operation: str, outcome: str, elapsed_s: float) -> None:
        """One call on Redis ended: ``outcome`` is ok, timeout, connection, out_of_memory, error or busy."""

    def fell_back(self, operation: str) -> None:
        """Served without Redis: a miss, a local bucket, or nothing written."""

    def value_rejected(self) -> None:
        """A cached value was corrupt or forged and was treated as a miss."""


class NullObserver:
    """Hears everything, tells nobody."""

    def breaker_changed(self, state: BreakerState) -> None:
        """Ignore."""

    def looked_up(self, num_hits: int, num_misses: int) -> None:
        """Ignore."""

    def call_finished(self, operation: str, outcome: str, elapsed_s: float) -> None:
        """Ignore."""

    def fell_back(self, operation: str) -> None:
        """Ignore."""

    def value_rejected(self) -> None:
        """Ignore."""
