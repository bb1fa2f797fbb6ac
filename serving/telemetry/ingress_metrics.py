"""Turns what the front door does into metrics."""

from __future__ import annotations

from serving.domain import Surface
from serving.front.observer import OK, PARTIAL
from serving.telemetry import metrics


class IngressMetrics:
    """An ``IngressObserver`` that counts. Labels are bounded by the front door itself."""

    def started(self, surface: Surface) -> None:
        """One more call in flight."""
        metrics.IN_FLIGHT.labels(surface.value).inc()

    def finished(self, *, surface: Surface, model: str, tenant: str, outcome: str, seconds: float) -> None:
        """A call is over."""
        metrics.IN_FLIGHT.labels(surface.value).dec()
        metrics.REQUESTS.labels(surface.value, model, tenant, outcome).inc()
        metrics.REQUEST_SECONDS.labels(surface.value, model).observe(seconds)
        if outcome not in (OK, PARTIAL):
            metrics.REJECTIONS.labels(outcome).inc()
