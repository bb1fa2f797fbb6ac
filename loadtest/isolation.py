"""What one phase does to the tenants of another: each tenant's latency in both, and their ratio."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from loadtest.records import Record
from loadtest.scenario import Isolation, Slo
from loadtest.slo import SloCheck
from loadtest.stats import Distribution
from loadtest.summary import group_by, summarise

_PROTECTED = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantShift:
    """One tenant's latency in the two phases; a failure counts as infinitely slow."""

    tenant: str
    is_protected: bool
    baseline: Distribution
    attacked: Distribution

    def ratio(self, q: float) -> float | None:
        """Attacked / baseline. ``None`` if one of them is refused."""
        before, after = (each.quantile(q).value_s for each in (self.baseline, self.attacked))
        return after / before if before and after is not None else None


def tenant_shifts(records: Sequence[Record], isolation: Isolation) -> Iterator[TenantShift]:
    """Every tenant that sends in both phases, in the order of their coming."""
    by_phase = group_by(records, lambda record: record.phase)
    tenants = [
        group_by(by_phase.get(phase, ()), lambda record: record.tenant)
        for phase in (isolation.baseline, isolation.attack)
    ]
    for name, before in tenants[0].items():
        if name in tenants[1]:
            yield TenantShift(
                tenant=name,
                is_protected=name in isolation.tenants,
                baseline=summarise(before).latency,
                attacked=summarise(tenants[1][name]).latency,
            )


def check_isolation(slo: Slo, shifts: Iterable[TenantShift]) -> Iterator[SloCheck]:
    """One check for each tenant that is to be left alone; a ratio that is refused is not shown, and so not passed."""
    if slo.isolation is None:
        return
    limit, found = slo.isolation.max_p99_ratio, {shift.tenant: shift for shift in shifts}
    for tenant in slo.isolation.tenants:
        shift = found.get(tenant)
        ratio = None if shift is None else shift.ratio(_PROTECTED)
        yield SloCheck(
            name=f"isolation of {tenant}",
            limit=f"p99 <= {limit:g}x of {slo.isolation.baseline}",
            value=_refusal(shift) if ratio is None else f"{ratio:.4g}",
            is_passed=ratio is not None and ratio <= limit,
        )


def _refusal(shift: TenantShift | None) -> str:
    entries = [] if shift is None else [each.quantile(_PROTECTED) for each in (shift.baseline, shift.attacked)]
    return next((entry.refusal or "failed" for entry in entries if entry.value_s is None), "no requests")
