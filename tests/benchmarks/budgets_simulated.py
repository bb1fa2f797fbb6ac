"""Part of ``bench-budgets``: four policies on the mixed trace below, above and far above what the replicas can do.

Nominal is the rate at which the busiest model is just busy: every request at the point that an idle system gives, in
full batches. Models are those that are shipped, at the costs of their tables; there are as many replicas of each as the
trace needs at its own rate, rounded. Times scatter by a tenth around their costs.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from schedulers.lab.cluster import POLICIES, System, busy_s_per_s, simulate_system
from schedulers.lab.mixed import GREEDY, mixed
from schedulers.lab.outcomes import Summary, summarise
from schedulers.lab.traces import Request, scaled
from serving.cli.simulated import shipped_models
from tests.benchmarks.common import markdown_table

LOADS: Final = (0.8, 1.2, 2.0)
_NOISE: Final = 0.1
_SIGNIFICANT: Final = 6


def measure(*, quick: bool = False) -> dict[str, Any]:
    """Every policy at every load."""
    requests = mixed(duration_s=10.0 if quick else 120.0)
    system, nominal_per_s = sized(requests)
    rows = []
    for load in LOADS:
        played = scaled(requests, rate_per_s=load * nominal_per_s)
        for policy in POLICIES:
            summary = summarise(simulate_system(system, played, policy), {})
            rows.append({"load": load, "policy": policy, **_rounded(_figures(summary))})
    return {
        "trace": f"mixed(duration_s={requests[-1].arrived_s:.0f})",
        "num_requests": len(requests),
        "nominal_per_s": _rounded(nominal_per_s),
        "replicas": system.replicas,
        "noise": _NOISE,
        "rows": rows,
    }


def sized(requests: list[Request]) -> tuple[System, float]:
    """A system for a trace, and its nominal rate."""
    models = shipped_models()
    busy = {name: one for name, one in busy_s_per_s(System(models=models), requests).items() if one > 0.0}
    replicas = {name: max(1, round(one)) for name, one in busy.items()}
    rate_per_s = (len(requests) - 1) / (requests[-1].arrived_s - requests[0].arrived_s)
    factor = min(replicas[name] / one for name, one in busy.items())
    used = [model for model in models if model.id in busy]
    return System(models=used, replicas=replicas, noise=_NOISE), factor * rate_per_s


def _figures(summary: Summary) -> dict[str, Any]:
    found = asdict(summary)
    others = [group for tenant, group in summary.by_tenant.items() if tenant != GREEDY]
    total = sum(group.num_requests for group in others)
    found["attainment_of_others"] = sum(group.attainment * group.num_requests for group in others) / total
    return found


def _rounded(found: Any) -> Any:
    """What the figures are worth, in a file that can be compared."""
    if isinstance(found, dict):
        return {name: _rounded(one) for name, one in found.items()}
    return float(f"{found:.{_SIGNIFICANT}g}") if isinstance(found, float) else found


def lines(document: dict[str, Any]) -> list[str]:
    """Two tables."""
    rows = document["rows"]
    header = (
        "load, policy",
        "in budget",
        "of fcfs",
        "others than the greedy tenant",
        "goodput, 1/s",
        "J",
        "J per good answer",
        "worst over its share",
        "degraded",
        "rejected",
        "expired",
        "late",
        "quality",
    )
    base = {row["load"]: row["attainment"] for row in rows if row["policy"] == "fcfs"}
    cells = [
        (
            f"{row['load']:g}, {row['policy']}",
            f"{row['attainment']:.1%}",
            f"{row['attainment'] / base[row['load']]:.2f}",
            f"{row['attainment_of_others']:.1%}",
            f"{row['goodput_per_s']:.1f}",
            f"{row['joules']:.0f}",
            f"{row['joules_per_good']:.3f}",
            f"{row['worst_over_share']:.2f}",
            *(f"{row[share]:.1%}" for share in ("degraded", "rejected", "expired", "late")),
            f"{row['quality']:.4f}",
        )
        for row in rows
    ]
    tasks = list(rows[0]["by_task"])
    by_task = [
        (
            f"{row['load']:g}, {row['policy']}",
            *(_cell(row["by_task"][task]) for task in tasks),
        )
        for row in rows
    ]
    replicas = ", ".join(f"{count} {model}" for model, count in document["replicas"].items())
    return [
        f"{document['num_requests']} requests of `schedulers.lab.mixed`; {replicas}. "
        f"Load 1 is {document['nominal_per_s']:.0f} requests a second.",
        "",
        *markdown_table(header, cells).splitlines(),
        "",
        "In budget, and p99 of the answers in seconds, by task:",
        "",
        *markdown_table(("load, policy", *tasks), by_task).splitlines(),
    ]


def _cell(group: dict[str, Any]) -> str:
    p99_s = group["p99_s"]
    return f"{group['attainment']:.0%}, {'-' if p99_s is None else f'{p99_s:.2f}'}"
