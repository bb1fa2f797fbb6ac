"""Turns what a driver does into metrics."""

from __future__ import annotations

from serving.replica.driver import Answer
from serving.telemetry import metrics


class DriverMetrics:
    """A ``DriverObserver`` that counts."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._queue = metrics.QUEUE_SECONDS.labels(model)
        self._compute = metrics.COMPUTE_SECONDS.labels(model)
        self._ratio = metrics.COST_RATIO.labels(model)

    def batch_finished(self, stage: int, num_stages: int, size: int, elapsed_s: float, predicted_s: float) -> None:
        """Record a batch; a fused run counts at its first stage."""
        metrics.STAGE_BATCH_SIZE.labels(self._model, str(stage + 1)).observe(size)
        if predicted_s > 0:
            self._ratio.observe(elapsed_s / predicted_s)

    def sample_answered(self, answer: Answer) -> None:
        """Record an answer."""
        self._queue.observe(answer.queue_s)
        self._compute.observe(answer.compute_s)
        metrics.EXITS.labels(self._model, str(answer.exit_index + 1)).inc()
        if answer.degraded:
            metrics.DEGRADED.labels(self._model, "deadline").inc()
