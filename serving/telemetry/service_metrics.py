"""Turns what the classify service answers into metrics."""

from __future__ import annotations

from serving.domain import Report
from serving.telemetry import metrics


class ServiceMetrics:
    """A ``ServiceObserver`` that counts."""

    def answered(self, model: str, tenant: str, report: Report, budget_degraded: tuple[str, ...]) -> None:
        """Charge the joules; count an answer once for each part of its budget that cost it quality."""
        metrics.ENERGY_JOULES.labels(model, tenant, report.energy_source).inc(report.energy_j)
        for reason in budget_degraded:
            metrics.DEGRADED.labels(model, reason).inc()
