"""A whole system on the virtual clock: requests of many tenants to many models, each with replicas of its own.

Every policy gets a plan of the same planner. The three plain ones plan as if nothing waited, which is all that they
know; ``vireo`` plans under the load, refuses what cannot fit, and keeps tenants to their buckets.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from schedulers import admission
from schedulers.bending import Pressure, Shares, depth, limits_of
from schedulers.lab.fleets import FLEETS, Fleet, Sent, Site
from schedulers.lab.outcomes import Outcome
from schedulers.lab.served import ServedModel, Shape, Truth
from schedulers.lab.simulator import Clock, Record
from schedulers.lab.traces import Request
from schedulers.plan import Budget, Load, Plan, Refusal, plan
from schedulers.types import Finish, Reject, RejectReason

POLICIES = tuple(FLEETS)
OURS = "vireo"
BEND_AFTER_S: Mapping[Shape, float] = {"rows": 0.5, "slots": 1.0, "steps": 30.0}
"""Quality bends while more than so many seconds wait: what is served by default (``bending`` in the configuration). For
chats, not before they wait as long as they take."""
_TOLD_EVERY = 200
"""Requests between two calls of ``on_progress``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """``weight``: its share is in proportion to it. ``limits``: of its bucket; None: none."""

    weight: float = 1.0
    limits: admission.BucketLimits | None = None


@dataclass(frozen=True, kw_only=True)
class System:
    """``replicas``: by model, 1 if it is not there. ``noise``: as ``Site``. ``checks``: invariants after each step.

    ``bends``: whether quality gives way to load; ``bend_after_s``: by model, while more than so many seconds wait,
    where that is not what is served by default. ``room``: requests of one model at a time; more are refused.
    """

    models: Sequence[ServedModel]
    replicas: Mapping[str, int] = field(default_factory=dict)
    tenants: Mapping[str, Tenant] = field(default_factory=dict)
    noise: float = 0.0
    checks: bool = False
    bends: bool = True
    bend_after_s: Mapping[str, float] = field(default_factory=dict)
    room: float = math.inf

    def model_for(self, request: Request) -> ServedModel:
        """The model that a request names, or the first for its task. Raises: LookupError."""
        for model in self.models:
            if request.model == model.id or (not request.model and request.task in model.tasks):
                return model
        wanted = f"model {request.model!r}" if request.model else f"a model for the task {request.task!r}"
        raise LookupError(f"the trace asks for {wanted}; there are {', '.join(model.id for model in self.models)}")

    @property
    def weights(self) -> dict[str, float]:
        """Of tenants."""
        return {name: tenant.weight for name, tenant in self.tenants.items()}


def busy_s_per_s(system: System, requests: Sequence[Request]) -> dict[str, float]:
    """By model, the busy seconds that a trace asks for each second, at the points that an idle system gives and in full
    batches: as many replicas are just enough. Raises: LookupError, as ``System.model_for``."""
    busy: dict[str, float] = {model.id: 0.0 for model in system.models}
    for request in requests:
        model = system.model_for(request)
        made = _plan(model, request, Load())
        busy[model.id] += made.busy_s if isinstance(made, Plan) else 0.0
    span_s = requests[-1].arrived_s - requests[0].arrived_s
    return {name: seconds / span_s if span_s > 0.0 else 0.0 for name, seconds in busy.items()}


def simulate_system(
    system: System,
    requests: Sequence[Request],
    policy: str,
    *,
    seed: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> list[Outcome]:
    """Play a trace until each request has its outcome, in the order of the trace.

    ``seed``: of noise, and of which inputs are hard. ``on_progress``: how many requests have come, now and then.

    Raises:
        ValueError: an unknown policy.
        LookupError: as ``System.model_for``.
        RuntimeError: a request was lost.
    """
    if policy not in FLEETS:
        raise ValueError(f"the policy {policy!r} is unknown; there are {', '.join(FLEETS)}")
    run = _Run(system, requests, policy, seed, on_progress or (lambda count: None))
    return run.play()


def _plan(model: ServedModel, request: Request, load: Load, running: int = 1) -> Plan | Refusal:
    budget = Budget(latency_s=request.latency_s, energy_j=request.energy_j, quality_floor=request.quality_floor)
    return plan(model.planned(running), model.work(request), budget, load)


class _Bend:
    """How far requests for one model give way to load, as at a gateway; not at all if it does not bend."""

    def __init__(self, system: System, model: ServedModel) -> None:
        limits = limits_of(max(system.bend_after_s.get(model.id, BEND_AFTER_S[model.shape]), model.slot_s))
        self._pressure = Pressure(limits) if system.bends else None
        self.shares = Shares(system.weights, fades_s=limits.fall_after_s)

    @property
    def level(self) -> int:
        """Of pressure."""
        return 0 if self._pressure is None else self._pressure.level

    def depth(self, now_s: float, request: Request, waiting_s: float) -> float:
        """From 0 to 1. ``waiting_s``: of work for the model."""
        if self._pressure is None:
            return 0.0
        level = self._pressure.observe(now_s, waiting_s)
        return depth(level, request.priority, self.shares.of(request.tenant))


class _Wanted(NamedTuple):
    """Of a request that was taken in: what an idle system would have given it, and the level of pressure when it
    came."""

    joules: float
    quality: float | None
    level: int


class _Run:
    """One policy on one trace."""

    def __init__(
        self,
        system: System,
        requests: Sequence[Request],
        policy: str,
        seed: int,
        on_progress: Callable[[int], None],
    ) -> None:
        self._system, self._requests, self._on_progress = system, requests, on_progress
        self._is_ours = policy == OURS
        self._clock = Clock()
        self._luck = Random(f"{seed}:luck")
        site = Site(
            clock=self._clock,
            on_end=self._ended,
            weights=system.weights,
            noise=system.noise,
            seed=seed,
            checks=system.checks,
        )
        self._models = {id(request): system.model_for(request) for request in requests}
        self._fleets: dict[str, Fleet] = {
            model.id: FLEETS[policy](site, model, system.replicas.get(model.id, 1)) for model in system.models
        }
        self._bends = {model.id: _Bend(system, model) for model in system.models}
        self._buckets: dict[str, admission.BucketState] = {}
        self._wanted: dict[int, _Wanted] = {}
        self._open: Counter[str] = Counter()
        self._outcomes: list[Outcome | None] = [None] * len(requests)

    def play(self) -> list[Outcome]:
        for number, request in enumerate(self._requests):
            self._clock.push(request.arrived_s, self, number)
        self._clock.run()
        for fleet in self._fleets.values():
            fleet.check()
        outcomes = [outcome for outcome in self._outcomes if outcome is not None]
        if len(outcomes) != len(self._requests):
            raise RuntimeError(f"{len(self._requests) - len(outcomes)} of {len(self._requests)} requests were lost")
        self._on_progress(len(outcomes))
        return outcomes

    def step(self, now_s: float, events: list[int]) -> None:
        """Requests come: see ``Target``."""
        for number in events:
            if number % _TOLD_EVERY == 0:
                self._on_progress(number)
            self._take(now_s, number, self._requests[number])

    def wake(self, now_s: float) -> None: ...

    def _take(self, now_s: float, number: int, request: Request) -> None:
        model = self._models[id(request)]
        luck = self._luck.random()  # drawn for each request, whatever becomes of it
        idle = _plan(model, request, Load())
        if isinstance(idle, Refusal):
            self._reject(now_s, number, model, f"infeasible: {', '.join(idle.breaks)}", 0.0)
            return
        fleet, bend = self._fleets[model.id], self._bends[model.id]
        bent = bend.depth(now_s, request, fleet.waiting_s())
        if self._open[model.id] >= self._system.room:
            self._reject(now_s, number, model, "full", idle.energy_j)
            return
        load = Load(queued_s=fleet.queued_s(request.tenant, idle.busy_s), bend=bent)
        made = _plan(model, request, load, fleet.running())
        if isinstance(made, Refusal):
            self._reject(now_s, number, model, "load", idle.energy_j)
            return
        if not self._reserve(now_s, request.tenant, made):
            self._reject(now_s, number, model, "quota", idle.energy_j)
            return
        bend.shares.add(now_s, request.tenant, made.busy_s)
        self._wanted[number] = _Wanted(idle.energy_j, idle.point.quality, bend.level)
        self._open[model.id] += 1
        truth = Truth(model=model, point=model.point_of(made), request=request, luck=luck)
        fleet.send(now_s, Sent(number=number, truth=truth, plan=made))

    def _limits(self, tenant: str) -> admission.BucketLimits | None:
        return self._system.tenants.get(tenant, Tenant()).limits if self._is_ours else None

    def _reserve(self, now_s: float, tenant: str, made: Plan) -> bool:
        limits = self._limits(tenant)
        if limits is None:
            return True
        state = self._buckets.get(tenant) or admission.full(limits, now_s)
        cost = admission.Cost(made.energy_j, made.busy_s)
        self._buckets[tenant], over = admission.reserve(state, limits, cost, now_s)
        return over is None

    def _settle(self, now_s: float, sent: Sent, joules: float) -> None:
        limits = self._limits(sent.tenant)
        if limits is None:
            return
        actual = admission.Cost(joules, joules / sent.truth.model.watts)
        reserved = admission.Cost(sent.plan.energy_j, sent.plan.busy_s)
        self._buckets[sent.tenant] = admission.settle(self._buckets[sent.tenant], limits, reserved, actual, now_s)

    def _reject(self, now_s: float, number: int, model: ServedModel, reason: str, wanted_j: float) -> None:
        self._outcomes[number] = Outcome(
            number=number,
            request=self._requests[number],
            model=model.id,
            state="rejected",
            done_s=now_s,
            reason=reason,
            wanted_j=wanted_j,
            level=self._bends[model.id].level,
        )

    def _ended(self, sent: Sent, record: Record) -> None:
        truth, decision = sent.truth, record.decision
        busy_s = record.cost_s if truth.busy_s is None else truth.busy_s
        joules = busy_s * truth.model.watts
        self._settle(record.done_s, sent, joules)
        self._open[truth.model.id] -= 1
        wanted = self._wanted.pop(sent.number)
        is_answered = isinstance(decision, Finish)
        is_worse = (truth.point.quality or 0.0) < (wanted.quality or 0.0)
        is_refused = isinstance(decision, Reject) and decision.reason is RejectReason.QUEUE_FULL
        self._outcomes[sent.number] = Outcome(
            number=sent.number,
            request=truth.request,
            model=truth.model.id,
            state="answered" if is_answered else ("rejected" if is_refused else "expired"),
            done_s=record.done_s,
            reason="" if is_answered or not isinstance(decision, Reject) else decision.reason.value,
            point=truth.point.name,
            quality=truth.point.quality,
            joules=joules,
            wanted_j=wanted.joules,
            planned_j=sent.plan.energy_j,
            degraded=is_answered and is_worse,
            gave_way="load" in sent.plan.degraded,
            level=wanted.level,
            is_cut_short=isinstance(decision, Finish) and decision.degraded,
        )
