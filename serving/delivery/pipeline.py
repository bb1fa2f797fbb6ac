"""What every request goes through on a gateway, whatever its task and its delivery.

    admit -> (media, plan: the task's) -> look up and reserve -> run -> settle, keep, report

One per gateway: its requests are bounded together, share its room fairly, and have one rule for their deadlines.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import grpc
from ray.exceptions import ActorUnavailableError, RayActorError

from schedulers.admission import NOTHING, Cost, Factors
from schedulers.elsewhere import Elsewhere
from schedulers.fair_queue import EQUAL, Weights
from schedulers.lag_limit import LagLimit
from schedulers.shared_room import Place, SharedRoom
from schedulers.types import Priority as SchedulerPriority
from serving.bending import Bending
from serving.delivery.flights import Flights, Urgency, result_of
from serving.domain import Budget, Priority
from serving.energy.spent import Spent
from serving.errors import DeadlineExceeded, DeadlineUnreachable, QueueFull, RetriesSpent, TooManyInFlight, UnknownModel
from serving.stores.results import Codec, Reservation, ResultName, ResultStore
from serving.telemetry.events import EnergySpent, ResultShared, Sink, ignore

T = TypeVar("T")
Outcome = TypeVar("Outcome")
_LEAST_RETRY_S = 0.05
_BEYOND = 64
"""A tenant's own bound, by which HAProxy lets more come."""
_LOOK_S = 0.05
"""Between two looks at the event loop."""
PRIORITIES = {
    Priority.LOW: SchedulerPriority.LOW,
    Priority.NORMAL: SchedulerPriority.NORMAL,
    Priority.HIGH: SchedulerPriority.HIGH,
}
"""As the schedulers call them."""


@dataclass(frozen=True, kw_only=True)
class PipelineLimits:
    """Bounds of one gateway replica, over all that it serves."""

    max_in_flight: int
    default_deadline_s: float


@dataclass(eq=False, slots=True, kw_only=True)
class Fetch(Generic[T, Outcome]):
    """Items of one request whose results are wanted: found, or run.

    ``costs``, by item, and ``overrun`` say what is reserved for each that is missing. ``run(places, reservation)``
    gives an outcome for each of them, and sees that the reservation is settled, whatever becomes of it. ``kept`` gives
    what of an outcome another request may be given, now or later: None for a failure, or for an answer that a deadline
    has made worse.
    """

    model: str
    tenant: str
    names: Sequence[ResultName | None]
    codec: Codec[T]
    costs: Sequence[Cost]
    overrun: Factors
    urgency: Urgency
    run: Callable[[Sequence[int], Reservation], Awaitable[Sequence[Outcome]]]
    kept: Callable[[Outcome], T | None]


class Pipeline:
    """Use from one event loop.

    ``max_in_flight``: of tenants that have a bound of their own. ``weights``: of tenants. ``models``: all that are
    served here, whose work is charged to their tenants together.
    """

    def __init__(
        self,
        results: ResultStore,
        limits: PipelineLimits,
        max_in_flight: Mapping[str, int | None] = MappingProxyType({}),
        clock: Callable[[], float] = time.monotonic,
        tell: Sink = ignore,
        bending: Bending | None = None,
        *,
        weights: Weights = EQUAL,
        models: Collection[str] = (),
    ) -> None:
        self.results = results
        self.clock = clock
        self.tell = tell
        self.bending = bending or Bending({})
        self._limits = limits
        self._flights: Flights[Any] = Flights()
        self._max_in_flight = max_in_flight
        self._room = SharedRoom(limits.max_in_flight, weights)
        self._lag = LagLimit(limits.max_in_flight)
        self._watching: asyncio.Task[None] | None = None
        self._elsewhere = Elsewhere(models)
        self._given: dict[Place, asyncio.Future[None]] = {}
        """Resolved when the place is given, of those who wait for one."""

    @property
    def in_flight(self) -> int:
        """Requests that are being answered."""
        return self._room.num_in

    @property
    def has_room(self) -> bool:
        """Whether a request that came now would be let in at once."""
        return not self._room.is_full

    def start(self) -> None:
        """Begin to see how late the event loop is, which ``places`` follows."""
        self._watching = asyncio.get_running_loop().create_task(self._watch_loop())

    def stop(self) -> None:
        """End that."""
        if self._watching is not None:
            self._watching.cancel()

    async def _watch_loop(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + _LOOK_S
            await asyncio.sleep(_LOOK_S)
            self._lag.observe(loop.time() - due_s, self.in_flight)

    def places(self, tenant: str) -> int:
        """Requests of a tenant that should be here at a time, as things are: of all that there is room for, fewer while
        the event loop is late. Where it has a bound of its own, some more: it is told of that, and may also wait for
        jobs, which takes no place here."""
        places, limit = self._room.places_for(tenant, self._lag.limit), self._max_in_flight.get(tenant)
        return places if limit is None else min(places, limit + _BEYOND)

    @asynccontextmanager
    async def admitted(
        self,
        tenant: str,
        model: str,
        wait_s: Callable[[], float],
        least: Cost = NOTHING,
        count: int = 1,
        *,
        deadline_s: float,
        priority: Priority = Priority.NORMAL,
    ) -> AsyncIterator[None]:
        """Let a request in, and count it while it is here. Where there is no room, it waits for some if its tenant has
        less than its share of it (``schedulers.shared_room``). ``wait_s``: what its model has to do first. ``least``
        and ``count``: what it takes, as far as that is known already.

        Raises: QuotaExceeded, QuotaTooSmall, SpendCapReached: the tenant's account is empty; AccountUnavailable: it
            cannot be read; TooManyInFlight: too many of the tenant's are here; QueueFull: too many of all are;
            DeadlineExceeded: there was no room in time.
        """
        self._check_tenant(tenant, wait_s)
        await self.in_time(deadline_s, self.results.admit(tenant, least, count), "its account was read")
        now_s = self.clock()
        place = Place(tenant, model, now_s=now_s, deadline_s=deadline_s, priority=PRIORITIES[priority])
        is_in = self._room.ask(place)
        if is_in is False:
            raise self._full(tenant, max(_LEAST_RETRY_S, wait_s()))
        if is_in is None:
            await self._wait_for(place)
        try:
            yield
        finally:
            self._leave(place)

    def _check_tenant(self, tenant: str, wait_s: Callable[[], float]) -> None:
        limit, here = self._max_in_flight.get(tenant), self._room.num_here(tenant)
        if limit is not None and here >= limit:
            retry_s = max(_LEAST_RETRY_S, wait_s())
            raise TooManyInFlight(
                f"this gateway serves {here} requests of tenant {tenant!r}; limit is {limit} (max_in_flight); "
                f"retry in {retry_s:.2f} s",
                retry_after_s=retry_s,
            )

    def _full(self, tenant: str, retry_s: float) -> QueueFull:
        limit, share = self._limits.max_in_flight, int(self._room.share(tenant))
        part = "" if share == limit else f", {share} of them for you while others want them"
        return QueueFull(
            f"this gateway serves {self.in_flight} requests; limit is {limit}{part}; retry in {retry_s:.2f} s",
            retry_after_s=retry_s,
        )

    async def _wait_for(self, place: Place) -> None:
        given = self._given[place] = asyncio.get_running_loop().create_future()
        try:
            await self.in_time(place.deadline_s, given, "this gateway had room for it")
        except BaseException:
            if self._given.pop(place, None) is not None:
                self._room.give_up(place)
            elif not given.cancelled():  # it was given just before the waiting ended
                self._leave(place)
            raise

    def _leave(self, place: Place) -> None:
        """Give a place back, to whose turn it is."""
        while (following := self._room.leave(place)) is not None:
            given = self._given.pop(following)
            if not given.done():
                given.set_result(None)
                return
            place = following  # whoever waited for it is about to say so no more

    def served(self, tenant: str, model: str, joules: float) -> None:
        """A request of the tenant took so much, of whatever model: it counts where its next ones wait."""
        self._room.settle(tenant, model, joules)
        self._elsewhere.serve(tenant, model, joules, self.clock())

    def elsewhere_j(self, tenant: str, model: str) -> float:
        """Joules that other models served the tenant since the last time, for the queue of ``model``."""
        return self._elsewhere.tell(tenant, model, self.clock())

    def deadline_s(self, budget: Budget, transport_s: float | None) -> float:
        """When a request must be answered: the soonest of the budget's latency, the server's default, and what the
        transport says."""
        allowed_s = self._limits.default_deadline_s
        if budget.latency_ms is not None:
            allowed_s = min(allowed_s, budget.latency_ms / 1e3)
        deadline_s = self.clock() + allowed_s
        return deadline_s if transport_s is None else min(deadline_s, transport_s)

    def spent(self, model: str, tenant: str, point: str, spent: Spent) -> None:
        """Take note of what something took, answered or not. ``joules`` are those that are charged."""
        if spent.seconds:
            joules = spent.joules or 0.0
            self.served(tenant, model, joules)
            self.tell(EnergySpent(model=model, tenant=tenant, point=point, source=spent.source, joules=joules))

    async def in_time(self, deadline_s: float, work: Awaitable[T], what: str) -> T:
        """Raises: DeadlineExceeded: it took longer. ``what`` did not exist by then."""
        try:
            async with asyncio.timeout(max(0.0, deadline_s - self.clock())):
                return await work
        except TimeoutError:
            raise _too_late(what) from None

    def check_queue(self, deadline_s: float, queued_s: float) -> None:
        """Raises: DeadlineUnreachable: what waits before a request takes longer than it has."""
        late_s = self.clock() + queued_s - deadline_s
        if queued_s > 0.0 and late_s > 0.0:
            raise DeadlineUnreachable(
                f"the queue takes {queued_s:.2f} s, which is more than this request has; retry in {late_s:.2f} s, or "
                "allow more latency_ms",
                param="vireo",
                retry_after_s=max(_LEAST_RETRY_S, late_s),
            )

    def check_in_time(self, deadline_s: float, what: str) -> None:
        """Raises: DeadlineExceeded: it is later than that."""
        if self.clock() > deadline_s:
            raise _too_late(what)

    async def fetch(self, wanted: Fetch[T, Outcome]) -> list[T | Outcome]:
        """The results, in order: from the store, from an equal request under way, or run.

        Raises: ServingError: of the look-up, or of ``run``.
        """
        answers: dict[int, Any] = {}
        open_places: Sequence[int] = range(len(wanted.names))
        while open_places:
            names = [wanted.names[place] for place in open_places]
            led, followed = self._flights.join(names, wanted.urgency)
            shared: dict[int, T] = {}
            try:
                if led:
                    shared = await self._lead(wanted, [open_places[index] for index in led], answers)
            finally:
                for index, flight in led.items():
                    self._flights.land(names[index], flight, shared.get(open_places[index]))
            unanswered = []
            for index, flight in followed.items():
                if (result := await result_of(flight)) is None:
                    unanswered.append(open_places[index])
                    continue
                answers[open_places[index]] = result
                self.tell(ResultShared(wanted.model))
            open_places = unanswered
        return [answers[place] for place in range(len(wanted.names))]

    async def _lead(self, wanted: Fetch[T, Outcome], places: Sequence[int], answers: dict[int, Any]) -> dict[int, T]:
        """Look up, run what is missing. Returns what may be shared, by place."""
        names = [wanted.names[place] for place in places]
        costs = [wanted.costs[place] for place in places]
        lookup = await self.results.look_up(names, wanted.codec, wanted.tenant, costs, wanted.overrun)
        shared = {place: found for place, found in zip(places, lookup.found, strict=True) if found is not None}
        answers.update(shared)
        missing = [place for place in places if place not in shared]
        if not missing:
            return shared
        for place, outcome in zip(missing, await wanted.run(missing, lookup.reservation), strict=True):
            answers[place] = outcome
            if (kept := wanted.kept(outcome)) is not None:
                shared[place] = kept
                self.results.put(wanted.names[place], wanted.codec, kept)
        return shared


def _too_late(what: str) -> DeadlineExceeded:
    return DeadlineExceeded(f"the deadline passed before {what}; allow more latency_ms, or retry later")


Served = TypeVar("Served")


def served(models: Mapping[str, Served], name: str, does_not: str) -> Served:
    """The model of that name. ``does_not``: what one that is not among ``models`` fails to do.

    Raises: UnknownModel.
    """
    model = models.get(name)
    if model is None:
        known = ", ".join(models) or "none"
        raise UnknownModel(f"model {name[:100]!r} {does_not} here; models that do: {known}", param="model")
    return model


def is_replica_lost(error: BaseException) -> bool:
    """Whether the replica, rather than the model, failed, so that another replica may answer: Ray's errors about an
    actor, and what gRPC says when the connection to one breaks in a stream."""
    return isinstance(error, RayActorError | ActorUnavailableError | grpc.aio.AioRpcError)


def is_cancelled_itself() -> bool:
    """Whether somebody cancels the task that runs, rather than what it waits for having been cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def retries_spent() -> RetriesSpent:
    """For a request whose replica was lost when too many had been sent again already."""
    return RetriesSpent(
        "the replica that had this request was lost, and so were those of many others: it is not sent again; retry",
        retry_after_s=1.0,
    )
