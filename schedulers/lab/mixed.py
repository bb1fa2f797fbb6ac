"""A made-up trace of all tasks: five tenants, bursts, and one of them that sends far more than its share for a while.

python -m schedulers.lab.mixed > examples/traces/mixed.csv
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import IO

from schedulers.lab.traces import COLUMNS, Request, Tokens
from schedulers.types import Priority

SEED, DURATION_S = 2026, 30.0
GREEDY = "flood"
_CALM_S, _BURST_S, _BURST = 4.0, 1.5, 3.0
"""Mean lengths of calm and of bursts, and how many times as many requests come in a burst."""
_FLOOD = (0.35, 0.65, 10.0)
"""From and to which part of the trace the greedy tenant sends how many times its usual rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """What tenants ask for. ``rate_per_s``: of a usual tenant."""

    name: str
    rate_per_s: float
    latency_ms: tuple[float, float]
    sizes: Sequence[float] = (1.0,)
    energy_j: tuple[float, float] | None = None
    floor: float | None = None


_TASKS = (
    _Task(name="classify", rate_per_s=20.0, latency_ms=(600.0, 2000.0), sizes=(16.0, 32.0, 64.0), floor=0.93),
    _Task(name="infer", rate_per_s=8.0, latency_ms=(600.0, 2000.0), sizes=(8.0, 16.0)),
    _Task(name="chat", rate_per_s=0.5, latency_ms=(10e3, 30e3), energy_j=(4.0, 12.0), floor=0.35),
    _Task(name="images", rate_per_s=2.9, latency_ms=(1.5e3, 4e3), energy_j=(0.5, 4.0), floor=0.96),
    _Task(name="videos", rate_per_s=0.35, latency_ms=(6e3, 15e3), energy_j=(2.0, 12.0), floor=0.6),
)
_TENANTS = {
    "shop": {"classify": 2.0, "chat": 1.0},
    "lab": {"classify": 0.5, "infer": 2.0, "chat": 0.5},
    "press": {"chat": 2.0, "images": 1.5},
    "studio": {"images": 1.5, "videos": 2.0},
    GREEDY: {"classify": 0.5, "infer": 0.5, "chat": 0.5, "images": 0.5, "videos": 0.5},
}
"""By task, how many times the usual rate each tenant sends."""


def mixed(seed: int = SEED, duration_s: float = DURATION_S) -> list[Request]:
    """The trace, in order of time; a longer one begins otherwise. The same arguments give the same trace."""
    requests = [
        request
        for tenant, rates in _TENANTS.items()
        for task in _TASKS
        if task.name in rates
        for request in _stream(Random(f"{seed}:{tenant}:{task.name}"), tenant, task, rates[task.name], duration_s)
    ]
    return sorted(requests, key=lambda request: (request.arrived_s, request.tenant, request.task))


def _stream(rng: Random, tenant: str, task: _Task, times: float, duration_s: float) -> Iterator[Request]:
    """Poisson arrivals whose rate jumps: candidates come at the highest rate, and are thinned out."""
    bursts, now_s = list(_bursts(rng, duration_s)), 0.0
    low, high, flood = _FLOOD
    most = _BURST * (flood if tenant == GREEDY else 1.0)
    while (now_s := now_s + rng.expovariate(task.rate_per_s * times * most)) < duration_s:
        factor = _BURST if any(start <= now_s < end for start, end in bursts) else 1.0
        if tenant == GREEDY and low <= now_s / duration_s < high:
            factor *= flood
        if rng.random() * most < factor:
            yield _request(rng, tenant, task, now_s)


def _bursts(rng: Random, duration_s: float) -> Iterator[tuple[float, float]]:
    now_s = 0.0
    while now_s < duration_s:
        start_s = now_s + rng.expovariate(1.0 / _CALM_S)
        now_s = start_s + rng.expovariate(1.0 / _BURST_S)
        yield start_s, now_s


def _request(rng: Random, tenant: str, task: _Task, now_s: float) -> Request:
    has_energy, has_floor = rng.random() < 0.25, rng.random() < 0.15
    tokens = None
    if task.name == "chat":
        tokens = Tokens(images=rng.choice((0, 1, 1, 1, 2)), prompt=rng.randint(8, 96), output=rng.randint(8, 160))
    return Request(
        arrived_s=round(now_s, 4),
        task=task.name,
        tenant=tenant,
        priority=rng.choices(list(Priority), (0.2, 0.6, 0.2))[0],
        latency_s=round(rng.uniform(*task.latency_ms)) / 1e3,
        energy_j=round(rng.uniform(*task.energy_j), 2) if has_energy and task.energy_j else None,
        quality_floor=task.floor if has_floor and not has_energy else None,
        size=rng.choice(task.sizes),
        tokens=tokens,
    )


def write_trace(requests: Sequence[Request], file: IO[str]) -> None:
    """As ``traces.read_trace`` reads it."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in requests:
        tokens = () if one.tokens is None else (one.tokens.images, one.tokens.prompt, one.tokens.output)
        writer.writerow(
            [
                f"{one.arrived_s:.4f}",
                one.tenant,
                one.task,
                one.model,
                "" if one.priority is Priority.NORMAL else one.priority.name.lower(),
                "" if one.latency_s is None else f"{1e3 * one.latency_s:g}",
                "" if one.energy_j is None else f"{one.energy_j:g}",
                "" if one.quality_floor is None else f"{one.quality_floor:g}",
                "" if one.size == 1.0 else f"{one.size:g}",
                *(tokens or ("", "", "")),
            ]
        )


if __name__ == "__main__":
    write_trace(mixed(), sys.stdout)
