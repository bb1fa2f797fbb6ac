"""A tenant that sends ten times its share of all five tasks, beside others that keep to theirs: what the others see.

Every model (``schedulers.lab.shapes.TASKS``) has a replica, all have one gateway, and every tenant the same weight: its
share of a model is a part of the capacity that each has. Requests pass the gateway's room and bring along what their
tenant was served elsewhere, as in ``serving.delivery.pipeline``; or, to compare, a gateway that lets in whoever comes
first and says nothing. A job leaves the room at once: it waits until the replica claims it, as in
``serving.replica.job.worker``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import Any, NamedTuple

from schedulers.elsewhere import Elsewhere
from schedulers.fair_queue import FairQueue
from schedulers.kernel import Kernel
from schedulers.lab.shapes import TASKS, Shape
from schedulers.lab.simulator import TraceUnit, lognormal_noise, percentile
from schedulers.policies.denoising import DenoisingWork
from schedulers.shared_room import Place, SharedRoom
from schedulers.types import Decision, Event, Finish, Preempted, RunSlice, SliceFinished, SliceResult, Tick, UnitArrived
from schedulers.urgency import queue_key

GREEDY = "greedy"
OTHERS = ("one", "two", "three", "four")
JOBS = ("images", "videos")
USED = 0.5
"""Of their share, what the others send."""
_NOISE = 0.05


@dataclass(slots=True, eq=False)
class Asked:
    """One request of one unit, and what became of it: ``done_s`` None, it was refused or expired."""

    model: str
    unit: TraceUnit
    place: Place
    done_s: float | None = None
    cost_s: float = 0.0

    @property
    def is_good(self) -> bool:
        """Answered in time."""
        return self.done_s is not None and self.done_s <= self.unit.deadline_s


class Seen(NamedTuple):
    """By the others, of one model. ``good``: part of their requests that was answered in time."""

    p99_s: float | None
    good: float


def trace(model: str, shape: Shape, greedy: float, seconds: float, rng: Random) -> list[Asked]:
    """Poisson arrivals of each tenant; ``greedy``: what that one sends, in shares."""
    share_per_s = shape.capacity_per_s / (1 + len(OTHERS))
    asked = []
    for tenant, load in [*((other, USED) for other in OTHERS), (GREEDY, greedy)]:
        now_s = rng.expovariate(load * share_per_s) if load else seconds
        while now_s < seconds:
            unit = replace(shape.unit(rng, now_s), tenant=tenant)
            asked.append(Asked(model, unit, Place(tenant, model, now_s=now_s, deadline_s=unit.deadline_s)))
            now_s += rng.expovariate(load * share_per_s)
    return asked


class Job:
    """What a fair queue reads of a job that nobody has claimed."""

    def __init__(self, asked: Asked, number: int, elsewhere_j: float) -> None:
        unit, work = asked.unit, asked.unit.work
        assert isinstance(work, DenoisingWork)
        self.asked, self.number, self.elsewhere_j = asked, number, elsewhere_j
        self.tenant, self.deadline_s, self.batch_key = unit.tenant, unit.deadline_s, ()
        self.joules = work.steps_left * work.seconds_per_step
        self.rank = (queue_key(unit.priority, unit.arrived_s, unit.deadline_s, self.joules), 0.0)


class Claims:
    """Jobs that the replica of a model has not claimed, and which it claims next."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._queue: FairQueue[Job] = FairQueue()
        self._charged: dict[Asked, float] = {}
        """What those that were claimed were charged."""

    def add(self, job: Job) -> None:
        """It waits."""
        self._queue.add(job)

    def next(self) -> Job | None:
        """Take the job whose turn it is, if there is a place for it. A tenant that holds as many as one may is passed
        over. When nothing waits, everybody starts anew."""
        if not self._queue:
            self._queue.rest()
        if not self._queue or self._kernel.room() <= 0:
            return None
        limits, held = self._kernel.policy.limits, Counter(asked.unit.tenant for asked in self._charged)
        most = max(limits.max_running, limits.max_units // 2)
        units, _ = self._queue.take_alike(1, fits=lambda job, _: held[job.tenant] < most, slack=math.inf, look=1)
        for job in units:
            self._charged[job.asked] = job.joules
        return next(iter(units), None)

    def end(self, asked: Asked) -> None:
        """One that was claimed is over."""
        self._queue.correct(asked.unit.tenant, asked.cost_s - self._charged.pop(asked))


class FirstCome(SharedRoom):
    """To compare: whoever comes is let in while there is room, and refused when there is none."""

    def share(self, tenant: str) -> float:
        """Nothing: nobody waits."""
        return 0.0


class Run:
    """All models that are asked on one virtual clock."""

    def __init__(self, asked: Sequence[Asked], *, places: int, is_fair: bool, seed: int) -> None:
        tasks = {model: TASKS[model] for model in dict.fromkeys(one.model for one in asked)}
        self.room = SharedRoom(places) if is_fair else FirstCome(places)
        self.elsewhere = Elsewhere(tasks if is_fair else ())
        self.noise = lognormal_noise(Random(seed), _NOISE)
        self.kernels = {model: shape.kernel({}) for model, shape in tasks.items()}
        self.worlds = {model: shape.world() for model, shape in tasks.items()}
        self.claims = {model: Claims(self.kernels[model]) for model in tasks if model in JOBS}
        self.asked: dict[Place, Asked] = {one.place: one for one in asked}
        self.now_s = 0.0
        self._numbers = count()
        self._events: list[tuple[float, int, Asked | tuple[str, Event]]] = []
        for one in asked:
            self._push(one.unit.arrived_s, one)

    def _push(self, at_s: float, event: Asked | tuple[str, Event]) -> None:
        heappush(self._events, (at_s, next(self._numbers), event))

    def play(self) -> None:
        """Until every request has its end."""
        while True:
            wakes = [(at_s, model) for model, one in self.kernels.items() if (at_s := one.next_wakeup_s()) is not None]
            if wakes and (not self._events or min(wakes)[0] < self._events[0][0]):
                at_s, model = min(wakes)
                self.now_s = max(self.now_s, at_s)
                self._tell(model, Tick())
                continue
            if not self._events:
                return
            self.now_s, _, event = heappop(self._events)
            if not isinstance(event, Asked):
                self._tell(*event)
            elif self.room.ask(event.place):
                self._enter(event)

    def _enter(self, one: Asked) -> None:
        elsewhere_j = self.elsewhere.tell(one.unit.tenant, one.model, self.now_s)
        if (claims := self.claims.get(one.model)) is None:
            self._arrive(one, elsewhere_j)
            return
        claims.add(Job(one, next(self._numbers), elsewhere_j))
        self._leave(one)
        self._claim(one.model)

    def _claim(self, model: str) -> None:
        claims = self.claims[model]
        while (job := claims.next()) is not None:
            if job.deadline_s <= self.now_s:  # late before it began: it is not made
                claims.end(job.asked)
                continue
            self._arrive(job.asked, 0.0)  # their queue has been told

    def _arrive(self, one: Asked, elsewhere_j: float) -> None:
        unit = one.unit
        arrival = UnitArrived(
            unit_id=one,
            work=unit.work,
            deadline_s=unit.deadline_s,
            tenant=unit.tenant,
            batch_key=unit.batch_key,
            elsewhere_j=elsewhere_j,
        )
        self._handle(one.model, arrival)

    def _tell(self, model: str, event: Event) -> None:
        self._handle(model, event)
        if model in self.claims:
            self._claim(model)

    def _handle(self, model: str, event: Event) -> None:
        for decision in self.kernels[model].handle(self.now_s, event):
            self._carry_out(model, decision)

    def _carry_out(self, model: str, decision: Decision) -> None:
        if isinstance(decision, RunSlice):
            self._start(model, decision)
        elif not isinstance(decision, Preempted):
            self._end(decision.unit_id, isinstance(decision, Finish))

    def _start(self, model: str, run: RunSlice) -> None:
        world, asked = self.worlds[model], run.unit_ids
        elapsed_s = world.slice_s(run.stage, run.num_stages, [one.unit for one in asked]) * self.noise()
        for one in asked:
            one.cost_s += elapsed_s / len(asked)
        last = run.stage + run.num_stages - 1
        results = tuple(SliceResult(unit_id=one, report=world.report(one.unit, last)) for one in asked)
        ended = SliceFinished(slice_id=run.slice_id, results=results, elapsed_s=elapsed_s)
        self._push(self.now_s + elapsed_s, (model, ended))

    def _end(self, one: Any, is_answered: bool) -> None:
        one.done_s = self.now_s if is_answered else None
        self.room.settle(one.unit.tenant, one.model, one.cost_s)
        self.elsewhere.serve(one.unit.tenant, one.model, one.cost_s, self.now_s)
        if (claims := self.claims.get(one.model)) is not None:
            claims.end(one)
        else:
            self._leave(one)

    def _leave(self, one: Asked) -> None:
        if (following := self.room.leave(one.place)) is not None:
            self._enter(self.asked[following])


def played(
    greedy: float,
    *,
    is_fair: bool = True,
    seconds: float = 120.0,
    places: int = 64,
    seed: int = 0,
    models: Sequence[str] = tuple(TASKS),
) -> list[Asked]:
    """The others' requests for some models, beside a tenant that sends ``greedy`` shares of these, to their ends."""
    rng = Random(seed)
    asked = [one for model in models for one in trace(model, TASKS[model], greedy, seconds, rng)]
    Run(asked, places=places, is_fair=is_fair, seed=seed).play()
    return [one for one in asked if one.unit.tenant != GREEDY]


def seen(asked: Sequence[Asked]) -> dict[str, Seen]:
    """What they see, by model."""
    result = {}
    for model in dict.fromkeys(one.model for one in asked):
        theirs = [one for one in asked if one.model == model]
        took_s = sorted(one.done_s - one.unit.arrived_s for one in theirs if one.done_s is not None)
        result[model] = Seen(percentile(took_s, 0.99), sum(one.is_good for one in theirs) / len(theirs))
    return result
