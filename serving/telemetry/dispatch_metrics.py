"""Turns what a dispatcher does into metrics."""

from __future__ import annotations

from serving.telemetry import metrics


class DispatchMetrics:
    """A ``DispatchObserver`` that counts."""

    def __init__(self, model: str) -> None:
        self._images = metrics.REPLICA_CALLS.labels(model)
        self._retries = metrics.RETRIES.labels(model)

    def call_sent(self, num_samples: int) -> None:
        """A call left."""
        self._images.observe(num_samples)

    def call_retried(self) -> None:
        """A call is sent again."""
        self._retries.inc()
