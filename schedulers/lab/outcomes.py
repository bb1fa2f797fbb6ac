"""What became of the requests of a simulated trace, and the figures that are made of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from schedulers.lab.simulator import percentile
from schedulers.lab.traces import Request

State: TypeAlias = Literal["answered", "rejected", "expired"]
"""Rejected: refused when it came. Expired: taken in, and given up when it could not be in time any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Of one request. ``quality``: what its point promises. ``planned_j``: what it is predicted to take, ``joules``
    what it took, ``wanted_j`` what that point is predicted to take which an idle system would have given it.
    ``degraded``: it got a worse point than that; ``gave_way``: because of load. ``level``: pressure of its model when
    it came. ``is_cut_short``: its deadline, and not itself, chose where it left the network.
    """

    number: int
    request: Request
    model: str
    state: State
    done_s: float
    reason: str = ""
    point: str = ""
    quality: float | None = None
    joules: float = 0.0
    wanted_j: float = 0.0
    planned_j: float = 0.0
    degraded: bool = False
    gave_way: bool = False
    level: int = 0
    is_cut_short: bool = False

    @property
    def latency_s(self) -> float:
        """From arrival to the end."""
        return self.done_s - self.request.arrived_s

    @property
    def is_good(self) -> bool:
        """Answered within its budget, and as well as was promised."""
        return self.state == "answered" and not self.is_cut_short and self.done_s <= self.request.deadline_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Requests of one task, or of one tenant. Percentiles are of answers, in seconds; None where there is none."""

    num_requests: int
    attainment: float
    p50_s: float | None
    p99_s: float | None
    mean_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Of a run. Shares are of all requests.

    ``attainment``: answered within the budget; ``goodput_per_s``: of those, while requests came. ``quality``: mean
    promise of the answers that have one. ``worst_over_share``: the most that a tenant had of a model, in predicted
    joules, over its max-min fair share of what all had, given what it asked for.
    """

    num_requests: int
    duration_s: float
    attainment: float
    goodput_per_s: float
    joules: float
    joules_per_good: float | None
    quality: float | None
    degraded: float
    rejected: float
    expired: float
    late: float
    worst_over_share: float
    by_task: Mapping[str, Group]
    by_tenant: Mapping[str, Group]
    mean_latency_s: float | None
    p50_s: float | None
    p99_s: float | None


def summarise(outcomes: Sequence[Outcome], weights: Mapping[str, float]) -> Summary:
    """The figures of a run. ``weights``: of tenants, 1 for one that is not there."""
    count = max(1, len(outcomes))
    good = sum(one.is_good for one in outcomes)
    start_s = min((one.request.arrived_s for one in outcomes), default=0.0)
    duration_s = max((one.done_s for one in outcomes), default=0.0) - start_s
    span_s = max((one.request.arrived_s for one in outcomes), default=0.0) - start_s
    answers = [one for one in outcomes if one.state == "answered"]
    promises = [one.quality for one in answers if one.quality is not None]
    joules = math.fsum(one.joules for one in outcomes)
    whole = _group(outcomes)
    return Summary(
        num_requests=len(outcomes),
        duration_s=duration_s,
        attainment=good / count,
        goodput_per_s=good / span_s if span_s > 0.0 else 0.0,
        joules=joules,
        joules_per_good=joules / good if good else None,
        quality=math.fsum(promises) / len(promises) if promises else None,
        degraded=sum(one.degraded or one.is_cut_short for one in answers) / count,
        rejected=sum(one.state == "rejected" for one in outcomes) / count,
        expired=sum(one.state == "expired" for one in outcomes) / count,
        late=sum(one.done_s > one.request.deadline_s for one in answers) / count,
        worst_over_share=worst_over_share(outcomes, weights),
        by_task=_groups(outcomes, lambda one: one.request.task or one.model),
        by_tenant=_groups(outcomes, lambda one: one.request.tenant),
        mean_latency_s=whole.mean_s,
        p50_s=whole.p50_s,
        p99_s=whole.p99_s,
    )


def _groups(outcomes: Sequence[Outcome], name_of: Callable[[Outcome], str]) -> dict[str, Group]:
    groups: dict[str, list[Outcome]] = {}
    for one in outcomes:
        groups.setdefault(name_of(one), []).append(one)
    return {name: _group(groups[name]) for name in sorted(groups)}


def _group(outcomes: Sequence[Outcome]) -> Group:
    latencies = sorted(one.latency_s for one in outcomes if one.state == "answered")
    return Group(
        num_requests=len(outcomes),
        attainment=sum(one.is_good for one in outcomes) / max(1, len(outcomes)),
        p50_s=percentile(latencies, 0.5),
        p99_s=percentile(latencies, 0.99),
        mean_s=math.fsum(latencies) / len(latencies) if latencies else None,
    )


def worst_over_share(outcomes: Iterable[Outcome], weights: Mapping[str, float]) -> float:
    """See ``Summary``; 1 where nobody had more than that."""
    had: dict[str, dict[str, float]] = {}
    asked: dict[str, dict[str, float]] = {}
    for one in outcomes:
        tenant = one.request.tenant
        given_j = one.planned_j if one.state == "answered" else 0.0
        for table, joules in ((had, given_j), (asked, one.wanted_j)):
            of_model = table.setdefault(one.model, {})
            of_model[tenant] = of_model.get(tenant, 0.0) + joules
    worst = 1.0
    for model, used in had.items():
        fair = max_min(asked[model], weights, math.fsum(used.values()))
        worst = max([worst, *(used[tenant] / share for tenant, share in fair.items() if share > 0.0)])
    return worst


def max_min(asked: Mapping[str, float], weights: Mapping[str, float], total: float) -> dict[str, float]:
    """Shares of ``total`` by weight, where nobody gets more than was asked for while others ask for more."""
    shares = dict.fromkeys(asked, 0.0)
    left, hungry = total, dict(asked)
    while hungry and left > 1e-12 * total:
        per_weight = left / sum(weights.get(tenant, 1.0) for tenant in hungry)
        filled = [tenant for tenant, more in hungry.items() if more <= per_weight * weights.get(tenant, 1.0)]
        if not filled:
            for tenant in hungry:
                shares[tenant] += per_weight * weights.get(tenant, 1.0)
            return shares
        for tenant in filled:
            more = hungry.pop(tenant)
            shares[tenant] += more
            left -= more
    if left > 1e-12 * total and asked:  # more was used than was asked for
        scale = total / math.fsum(asked.values()) if math.fsum(asked.values()) > 0.0 else 0.0
        return {tenant: scale * joules for tenant, joules in asked.items()}
    return shares
