"""Objectives against figures. An objective whose figure the sample is too small for is not shown, and so not passed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from loadtest.scenario import Slo
from loadtest.stats import Distribution
from loadtest.summary import Summary


@dataclass(frozen=True, slots=True, kw_only=True)
class SloCheck:
    """One objective and what the run showed, in the scenario's units."""

    name: str
    limit: str
    value: str
    is_passed: bool


def check_slo(slo: Slo, summary: Summary) -> Iterator[SloCheck]:
    """One check for each objective that is set."""
    if slo.min_good_share is not None:
        value = None if summary.good_share is None else summary.good_share.value
        yield _at_least("min_good_share", slo.min_good_share, value)
    if slo.max_failed_share is not None:
        value = None if summary.ok_share is None else 1.0 - summary.ok_share.value
        yield _at_most("max_failed_share", slo.max_failed_share, value)
    if slo.max_p50_ms is not None:
        yield _quantile("max_p50_ms", slo.max_p50_ms, summary.latency, 0.5)
    if slo.max_p99_ms is not None:
        yield _quantile("max_p99_ms", slo.max_p99_ms, summary.latency, 0.99)
    if slo.max_generator_lag_p99_ms is not None:
        yield _quantile("max_generator_lag_p99_ms", slo.max_generator_lag_p99_ms, summary.generator_lag, 0.99)
    bad = summary.bad_inputs
    if slo.are_bad_inputs_refused and bad.num_sent:
        yield SloCheck(
            name="are_bad_inputs_refused",
            limit=f"all {bad.num_sent}",
            value=f"{bad.num_answered_with_error} refused, {bad.num_accepted} accepted, {bad.num_other} other",
            is_passed=bad.num_answered_with_error == bad.num_sent,
        )


def _quantile(name: str, limit_ms: float, distribution: Distribution | None, q: float) -> SloCheck:
    if distribution is None:
        return SloCheck(name=name, limit=f"<= {limit_ms:g}", value="not defined in a closed loop", is_passed=False)
    entry = distribution.quantile(q)
    if entry.value_s is None:
        return SloCheck(name=name, limit=f"<= {limit_ms:g}", value=entry.refusal or "none", is_passed=False)
    return _at_most(name, limit_ms, entry.value_s * 1e3)


def _at_least(name: str, limit: float, value: float | None) -> SloCheck:
    shown, passed = ("no requests", False) if value is None else (f"{value:.4g}", value >= limit)
    return SloCheck(name=name, limit=f">= {limit:g}", value=shown, is_passed=passed)


def _at_most(name: str, limit: float, value: float | None) -> SloCheck:
    shown, passed = ("no requests", False) if value is None else (f"{value:.4g}", value <= limit)
    return SloCheck(name=name, limit=f"<= {limit:g}", value=shown, is_passed=passed)
