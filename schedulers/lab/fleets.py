"""The replicas of one model, and how requests get to them: one queue for all, the fewest requests, the least predicted
work, or replicas that take jobs out of a fair queue when they have room."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from random import Random
from typing import Protocol

from schedulers.fair_queue import FairQueue, Weights
from schedulers.fair_wait import FairWait
from schedulers.lab.in_order import By
from schedulers.lab.served import Engine, ServedModel, Truth, served_engine, whole_engine
from schedulers.lab.simulator import Clock, Node, Record, Replica, lognormal_noise
from schedulers.least_loaded import LeastLoaded
from schedulers.plan import Plan
from schedulers.types import Reject, RejectReason
from schedulers.urgency import queue_key


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A request that was planned. ``joules``: what it is predicted to take."""

    number: int
    truth: Truth
    plan: Plan

    @property
    def tenant(self) -> str:
        """Whose it is."""
        return self.truth.request.tenant


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where fleets are: ``on_end`` is told of each request when its record is there. ``noise``: standard deviation of
    the logarithm of what slices take."""

    clock: Clock
    on_end: Callable[[Sent, Record], None]
    weights: Weights
    noise: float = 0.0
    seed: int = 0
    checks: bool = False

    def node(self, engine: Engine, name: str, on_end: Callable[[Record], None]) -> Node:
        """A replica on this clock."""
        noise = lognormal_noise(Random(f"{self.seed}:{name}"), self.noise) if self.noise > 0.0 else None
        replica = Replica(
            scheduler=engine.kernel, trace=(), world=engine.world, noise=noise, num_executors=engine.num_executors
        )
        return Node(replica, self.clock, check_each_step=self.checks, on_end=on_end, keeps_slices=False)


class Fleet(Protocol):
    """All replicas of a model."""

    def queued_s(self, tenant: str, busy_s: float) -> float:
        """Seconds before a request of so many that comes now, as far as whoever plans it is told."""
        ...

    def waiting_s(self) -> float:
        """Seconds that wait for a replica, of all tenants, likewise."""
        ...

    def running(self) -> int:
        """Answers of a chat that run together on a replica, likewise; 1 for all other work."""
        ...

    def send(self, now_s: float, sent: Sent) -> None:
        """A request goes there."""
        ...

    def check(self) -> None:
        """Raises: RuntimeError, AssertionError: a request was lost."""
        ...


class _Member:
    """One node, and the requests that are there: unit ids count up."""

    def __init__(self, site: Site, engine: Engine, name: str, on_end: Callable[[_Member, Sent, Record], None]) -> None:
        self.name, self.engine = name, engine
        self.node = site.node(engine, name, self._ended)
        self._on_end = on_end
        self._sent: list[Sent | None] = []
        self.num_open = 0

    def take(self, now_s: float, sent: Sent) -> None:
        """A request comes in."""
        self._sent.append(sent)
        self.num_open += 1
        self.node.arrive(now_s, self.engine.unit(sent.truth, now_s))

    def _ended(self, record: Record) -> None:
        number = int(record.unit_id)
        sent, self._sent[number] = self._sent[number], None
        assert sent is not None
        self.num_open -= 1
        self._on_end(self, sent, record)


class _Silent:
    """Tells nobody what waits."""

    def queued_s(self, tenant: str, busy_s: float) -> float:
        """See ``Fleet``."""
        return 0.0

    def waiting_s(self) -> float:
        """See ``Fleet``."""
        return 0.0

    def running(self) -> int:
        """See ``Fleet``."""
        return 1


class SharedQueue(_Silent):
    """First come, first served, or the nearest deadline: whichever replica is free takes the next."""

    def __init__(self, site: Site, model: ServedModel, num_replicas: int, by: By) -> None:
        self._member = _Member(
            site, whole_engine(model, by, num_replicas), model.id, lambda _, sent, record: site.on_end(sent, record)
        )

    def send(self, now_s: float, sent: Sent) -> None:
        """See ``Fleet``."""
        self._member.take(now_s, sent)

    def check(self) -> None:
        """See ``Fleet``."""
        self._member.node.simulation()


class _FewestOpen:
    """Members by how many requests are there, then by number."""

    def __init__(self, members: list[_Member]) -> None:
        self._members = members
        self._heap = [(0, number) for number in range(len(members))]
        self._numbers = {member.name: number for number, member in enumerate(members)}

    def first(self) -> _Member:
        """With the fewest."""
        heap = self._heap
        while self._members[heap[0][1]].num_open != heap[0][0]:
            heappop(heap)
        return self._members[heap[0][1]]

    def changed(self, member: _Member) -> None:
        """It has more or fewer."""
        heappush(self._heap, (member.num_open, self._numbers[member.name]))
        if len(self._heap) > 8 * len(self._members) + 64:
            self._heap = [(member.num_open, number) for number, member in enumerate(self._members)]
            self._heap.sort()


class FewestRequests(_Silent):
    """Each replica has a queue in order of arrival; a request goes where the fewest are."""

    def __init__(self, site: Site, model: ServedModel, num_replicas: int) -> None:
        self._site = site
        self._members = [
            _Member(site, whole_engine(model, "arrival"), f"{model.id}#{number}", self._ended)
            for number in range(num_replicas)
        ]
        self._fewest = _FewestOpen(self._members)

    def send(self, now_s: float, sent: Sent) -> None:
        """See ``Fleet``."""
        member = self._fewest.first()
        member.take(now_s, sent)
        self._fewest.changed(member)

    def _ended(self, member: _Member, sent: Sent, record: Record) -> None:
        self._fewest.changed(member)
        self._site.on_end(sent, record)

    def check(self) -> None:
        """See ``Fleet``."""
        for member in self._members:
            member.node.simulation()


class LeastWork:
    """Rows and chats as they are served: a ledger says where the least predicted work is; each replica shares its own
    fairly."""

    def __init__(self, site: Site, model: ServedModel, num_replicas: int) -> None:
        self._site, self._model = site, model
        self._members = {
            name: _Member(site, served_engine(model, site.weights), name, self._ended)
            for name in (f"{model.id}#{number}" for number in range(num_replicas))
        }
        self._ledger = LeastLoaded(self._members, f"{site.seed}")
        self._outstanding = FairWait(site.weights)
        self._num_open = 0
        self._slots = num_replicas * model.max_batch

    def queued_s(self, tenant: str, busy_s: float) -> float:
        """Of rows, what is outstanding and goes first; of chats, nothing while there is a slot."""
        if self._model.shape == "slots" and self._num_open < self._slots:
            return 0.0
        return self._outstanding.wait_s(tenant, busy_s) / len(self._members)

    def waiting_s(self) -> float:
        """See ``Fleet``. Of chats, those without a slot."""
        part = max(0, self._num_open - self._slots) / max(1, self._num_open) if self._model.shape == "slots" else 1.0
        return part * self._outstanding.total_s / len(self._members)

    def running(self) -> int:
        """See ``Fleet``."""
        if self._model.shape != "slots":
            return 1
        return min(self._model.max_batch, 1 + self._num_open // len(self._members))

    def send(self, now_s: float, sent: Sent) -> None:
        """See ``Fleet``."""
        self._outstanding.add(sent.tenant, sent.plan.busy_s)
        self._num_open += 1
        name = self._ledger.least(now_s).replica_id
        self._ledger.start(name, str(sent.number), sent.plan.busy_s, now_s)
        self._members[name].take(now_s, sent)

    def _ended(self, member: _Member, sent: Sent, record: Record) -> None:
        self._num_open -= 1
        self._outstanding.remove(sent.tenant, sent.plan.busy_s)
        self._ledger.finish(member.name, str(sent.number))
        self._site.on_end(sent, record)

    def check(self) -> None:
        """See ``Fleet``."""
        for member in self._members.values():
            member.node.simulation()


class _Job:
    """What a fair queue reads of a job that no replica has claimed."""

    __slots__ = ("batch_key", "deadline_s", "elsewhere_j", "joules", "number", "rank", "sent", "tenant")

    def __init__(self, sent: Sent, now_s: float) -> None:
        request = sent.truth.request
        self.sent, self.number, self.tenant = sent, sent.number, request.tenant
        self.deadline_s, self.batch_key, self.elsewhere_j = request.deadline_s, (), 0.0
        self.joules = max(1e-9, sent.plan.energy_j)
        deadline_s = None if math.isinf(request.deadline_s) else request.deadline_s
        self.rank = (queue_key(request.priority, now_s, deadline_s, sent.plan.latency_s), 0.0)


def _late(job: _Job, now_s: float) -> Record:
    request = job.sent.truth.request
    return Record(
        unit_id=job.number,
        tenant=job.tenant,
        arrived_s=request.arrived_s,
        deadline_s=job.deadline_s,
        done_s=now_s,
        decision=Reject(unit_id=job.number, reason=RejectReason.DEADLINE_PASSED, retry_after_s=0.0),
        cost_s=0.0,
    )


class Claimed:
    """Jobs as they are served: they wait in one queue, fair by joules, and replicas claim them while they have room.
    One that is late before it begins is not made."""

    def __init__(self, site: Site, model: ServedModel, num_replicas: int) -> None:
        self._site = site
        self._members = [
            _Member(site, served_engine(model, site.weights), f"{model.id}#{number}", self._ended)
            for number in range(num_replicas)
        ]
        self._fewest = _FewestOpen(self._members)
        self._room = 2 * model.max_batch
        self._queue: FairQueue[_Job] = FairQueue(site.weights)
        self._waiting = FairWait(site.weights)

    def queued_s(self, tenant: str, busy_s: float) -> float:
        """Of the jobs that nobody has claimed."""
        return self._waiting.wait_s(tenant, busy_s) / len(self._members) if self._queue else 0.0

    def waiting_s(self) -> float:
        """See ``Fleet``."""
        return self._waiting.total_s / len(self._members)

    def running(self) -> int:
        """See ``Fleet``."""
        return 1

    def send(self, now_s: float, sent: Sent) -> None:
        """See ``Fleet``."""
        self._queue.add(_Job(sent, now_s))
        self._waiting.add(sent.tenant, sent.plan.busy_s)
        self._claim(now_s)

    def _claim(self, now_s: float) -> None:
        while self._queue and (member := self._fewest.first()).num_open < self._room:
            (job,), _ = self._queue.take(1)
            self._waiting.remove(job.tenant, job.sent.plan.busy_s)
            if job.deadline_s <= now_s:
                self._queue.correct(job.tenant, -job.joules)
                self._site.on_end(job.sent, _late(job, now_s))
                continue
            member.take(now_s, job.sent)
            self._fewest.changed(member)

    def _ended(self, member: _Member, sent: Sent, record: Record) -> None:
        self._fewest.changed(member)
        self._queue.correct(sent.tenant, record.cost_s * sent.truth.model.watts - sent.plan.energy_j)
        self._site.on_end(sent, record)
        self._site.clock.push(record.done_s, _Later(self._claim), None)  # its kernel is still at work

    def check(self) -> None:
        """See ``Fleet``."""
        if self._queue:
            raise RuntimeError(f"{len(self._queue)} jobs were never claimed")
        for member in self._members:
            member.node.simulation()


class _Later:
    """A call when what happens now is over."""

    def __init__(self, call: Callable[[float], None]) -> None:
        self._call = call

    def step(self, now_s: float, events: list[None]) -> None:
        self._call(now_s)

    def wake(self, now_s: float) -> None: ...


FLEETS: dict[str, Callable[[Site, ServedModel, int], Fleet]] = {
    "fcfs": lambda site, model, count: SharedQueue(site, model, count, "arrival"),
    "least_loaded": FewestRequests,
    "edf": lambda site, model, count: SharedQueue(site, model, count, "deadline"),
    "vireo": lambda site, model, count: (Claimed if model.shape == "steps" else LeastWork)(site, model, count),
}
"""By policy."""
