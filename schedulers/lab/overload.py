"""More work than a pool of replicas can do, in virtual time: what is answered in time, what gives way, what is refused.

A pool serves one model. Its requests are planned (``schedulers.plan``), wait in order of arrival, and run one by one on
the first replica that is free. What has no time left when its turn comes is dropped, not run. Quality bends
(``schedulers.bending``) or does not: everything else is the same.

``schedulers.lab.cluster`` plays whole systems, with the kernels that serve: there, fair queues and batches that grow
under load hide what bending alone gives. Here a front of prices and a queue are all there is, so that the two sides
differ in nothing else, and any front can be tried without a model.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heapreplace
from random import Random

from schedulers.bending import Limits, Pressure, Shares, depth
from schedulers.plan import Budget, Load, Plan, Point, plan
from schedulers.types import Priority

UNIT = "requests"
"""Fronts are priced for a whole request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """``points``: cost of a request in ``UNIT``. ``budget_s``: latency that half of the requests ask for;
    ``patience_s``: after which the others are dropped. ``max_waiting``: more are refused. ``limits``: of its level."""

    name: str
    points: tuple[Point, ...]
    replicas: int
    budget_s: float
    patience_s: float
    max_waiting: int
    limits: Limits

    @property
    def capacity(self) -> float:
        """Requests a second, each at the best point."""
        best = plan(self.points, lambda _: {UNIT: 1.0}, Budget(), Load())
        assert isinstance(best, Plan)
        return self.replicas / best.busy_s


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. ``latency_s`` None: it waits as long as its pool's patience lasts."""

    arrived_s: float
    tenant: str
    priority: Priority
    latency_s: float | None


def arrivals(pool: Pool, load: float, seconds: float, seed: int) -> Iterator[Asked]:
    """At random, ``load`` times the capacity: three tenants of equal weight, one of which sends 60% of it."""
    random, now_s = Random(seed), 0.0
    while (now_s := now_s + random.expovariate(load * pool.capacity)) < seconds:
        (tenant,) = random.choices(("greedy", "steady", "modest"), (0.6, 0.3, 0.1))
        (priority,) = random.choices(tuple(Priority), (0.2, 0.6, 0.2))
        yield Asked(now_s, tenant, priority, pool.budget_s if random.random() < 0.5 else None)


@dataclass(slots=True)
class Outcome:
    """Counts of requests by what became of them; ``bent`` by priority and by tenant. ``quality``: sum of answers'."""

    sent: int = 0
    good: int = 0
    expired: int = 0
    refused: int = 0
    quality: float = 0.0
    bent: Counter[str] = field(default_factory=Counter)
    planned: Counter[str] = field(default_factory=Counter)
    num_changes: int = 0

    def bent_share(self, whose: str) -> float:
        """Of the requests of a priority or tenant that were planned, how many gave way to load."""
        return self.bent[whose] / max(1, self.planned[whose])


class _Replicas:
    """Requests in order of arrival, and when each replica is free."""

    def __init__(self, pool: Pool, outcome: Outcome) -> None:
        self._pool = pool
        self._outcome = outcome
        self._free_s = [0.0] * pool.replicas
        self._waiting: deque[tuple[Asked, Plan]] = deque()
        self._waiting_s = 0.0

    def advance(self, now_s: float) -> None:
        """Begin what could have begun by now."""
        while self._waiting and self._free_s[0] <= now_s:
            asked, made = self._waiting.popleft()
            self._waiting_s -= made.busy_s
            allowed_s = self._pool.patience_s if asked.latency_s is None else asked.latency_s
            done_s = max(self._free_s[0], asked.arrived_s) + made.busy_s
            if done_s > asked.arrived_s + allowed_s:
                self._outcome.expired += 1
                continue
            heapreplace(self._free_s, done_s)
            self._outcome.good += 1
            self._outcome.quality += made.quality

    def queued_s(self, now_s: float) -> float:
        """Seconds of work before a request that comes now."""
        running_s = sum(max(0.0, free_s - now_s) for free_s in self._free_s)
        return max(0.0, (self._waiting_s + running_s) / self._pool.replicas)

    @property
    def is_full(self) -> bool:
        return len(self._waiting) >= self._pool.max_waiting

    def add(self, asked: Asked, made: Plan) -> None:
        self._waiting.append((asked, made))
        self._waiting_s += made.busy_s


def replay(pool: Pool, trace: Sequence[Asked], *, bends: bool) -> Outcome:
    """What becomes of the requests of a trace."""
    outcome, pressure = Outcome(), Pressure(pool.limits)
    shares, replicas = Shares(fades_s=pool.limits.fall_after_s), _Replicas(pool, outcome)
    for asked in trace:
        now_s = asked.arrived_s
        replicas.advance(now_s)
        outcome.sent += 1
        queued_s = replicas.queued_s(now_s)
        level = pressure.observe(now_s, queued_s) if bends else 0
        if replicas.is_full:
            outcome.refused += 1
            continue
        bend = depth(level, asked.priority, shares.of(asked.tenant))
        made = plan(
            pool.points, lambda _: {UNIT: 1.0}, Budget(latency_s=asked.latency_s), Load(queued_s=queued_s, bend=bend)
        )
        if not isinstance(made, Plan):
            outcome.refused += 1
            continue
        shares.add(now_s, asked.tenant, made.busy_s)
        for whose in (asked.priority.name.lower(), asked.tenant):
            outcome.planned[whose] += 1
            outcome.bent[whose] += "load" in made.degraded
        replicas.add(asked, made)
    replicas.advance(float("inf"))
    outcome.num_changes = pressure.num_changes
    return outcome
