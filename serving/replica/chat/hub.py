"""The replica's half of the transport: runs choices on the engine and sends what they say to the gateways.

    open(gateway, session, starts) -> Accepted, then frames of every choice of that gateway

Tenants share the engine's slots (``schedulers.policies.chat``); priority orders the choices of one tenant only.

Each gateway has one stream here, whatever the number of its requests. An engine step says a delta of every choice that
it touched; each goes into the gateway's outbox, and the stream takes them all: one message for all choices. The
first token and the end of a choice go out at once. What lies between waits until ``interval_s`` after the message
before, so that a small model, faster than anybody reads, does not cost more to send than to run (DESIGN.md, section 3).

The stream ends when there has been nothing to say for a while, lest it hold up a replica that is to be stopped. One
that breaks off takes its gateway's choices with it: the gateway has given them up, or is dead (docs/decisions/0009).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import Context
from dataclasses import dataclass, field
from types import MappingProxyType

import structlog

from schedulers.fair_queue import EQUAL, Weights
from schedulers.guard.calibration import GuardCalibration
from schedulers.guard.watch import Next, Watch
from schedulers.shared_time import SharedTime
from schedulers.types import RejectReason
from serving.delivery.stream.wire import Accepted, ChoiceStart, Delta, EngineRequest, Failure, FinishReason, Frame
from serving.energy.meter import ESTIMATE
from serving.energy.replica import ReplicaEnergy
from serving.energy.spent import Spent
from serving.errors import (
    DeadlineExceeded,
    Draining,
    EngineFailed,
    InvalidRequest,
    QueueFull,
    ReplicaLost,
    ServingError,
    TooManyBytes,
)
from serving.fair_slots import FairSlots, SlotTurn
from serving.guard.watching import limited, purified_request, said, watch_for
from serving.replica.chat.base import ChatEngine, EngineDelta
from serving.replica.chat.outbox import Outbox
from serving.replica.chat.second_look import SecondLook, Used
from serving.replica.chat.teller import Teller
from serving.telemetry.events import ChoiceEndedEarly, ChoiceFinished, FirstToken, Sink, ignore
from serving.telemetry.tracing import record

_log = structlog.get_logger(__name__)
LINGER_S = 1.0
"""For how long a stream with nothing to say stays open."""
_RETRY_S = 1.0
_HEALTH_TIMEOUT_S = 5.0


@dataclass(eq=False, slots=True)
class _Running:
    """A choice, from its arrival to its end."""

    task: asyncio.Task[None] | None = None
    predicted_s: float = 0.0
    started_at: float | None = None
    """Reading of the shared clock when it got its slot."""
    used_s: float = 0.0
    """Its share of the busy time, once it is off the engine."""
    look: SecondLook | None = None
    """The guard's, whose share it pays for as well."""
    told: Spent = field(default_factory=Spent)
    """What its gateway hears that it took."""
    is_over: bool = False
    """Its last delta was said, and what it took with it. Its engine may still have to free what it held."""

    def cancel(self) -> bool:
        """Whether it was there to be ended."""
        return not self.is_over and self.task is not None and self.task.cancel()

    def used_until(self, reading: float) -> float:
        """Its share so far, and that of the second look."""
        own_s = self.used_s or (0.0 if self.started_at is None else reading - self.started_at)
        return own_s + self.look_s(reading)

    def look_s(self, reading: float) -> float:
        """The share of the second look so far."""
        return 0.0 if self.look is None else self.look.used_until(reading)

    @property
    def spent_s(self) -> float:
        """All that it has taken, once it is off the engine; so is the second look by then."""
        return self.used_s + self.look_s(0.0)


class ChoiceHub:
    """One per replica. Use from one event loop; ``stop`` when done.

    At most ``max_running`` choices are on the engine, which has been started; they hold no more keys and values than it
    has room for. At most ``max_waiting`` wait for that. ``max_kv_bytes``: what the choices of a tenant, waiting ones
    included, may need of it. Between the first token and the end, a gateway gets a message every ``interval_s`` at
    most; 0: one per engine step.
    """

    def __init__(
        self,
        engine: ChatEngine,
        replica_id: str,
        *,
        model: str = "",
        tell: Sink = ignore,
        max_running: int,
        max_waiting: int,
        interval_s: float = 0.0,
        weights: Weights = EQUAL,
        max_kv_bytes: Mapping[str, int | None] = MappingProxyType({}),
        watts: float = 1.0,
        energy: ReplicaEnergy | None = None,
        calibration: GuardCalibration | None = None,
        clock: Callable[[], float] = time.monotonic,
        linger_s: float = LINGER_S,
    ) -> None:
        self._engine = engine
        self._replica_id = replica_id
        self._model, self._tell = model, tell
        self._slots = FairSlots(
            max_running,
            max_waiting,
            max_held_bytes=engine.kv_bytes,
            weights=weights,
            watts=watts,
            clock=clock,
        )
        self._calibration = calibration
        self._max_kv_bytes = max_kv_bytes
        self._kv_bytes: Counter[str] = Counter()
        """That the choices of each tenant need, waiting ones included."""
        self._clock = clock
        self._interval_s = interval_s
        self._linger_s = linger_s
        self._time = SharedTime()
        self._energy = energy
        if energy is not None:
            energy.work_s = self._time.busy_s
        self._boxes: dict[str, Outbox[_Running]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._looks: set[asyncio.Task[None]] = set()
        self._is_stopping = False
        """Also set when the engine is dead."""

    # -- calls of gateways -------------------------------------------------------------------------------------------

    async def open(self, gateway: str, session: int, starts: Sequence[ChoiceStart]) -> AsyncGenerator[Frame, None]:
        """Start choices. The first frame tells which session carries their deltas; if it is this one, they follow."""
        box = self._boxes.setdefault(gateway, Outbox())
        is_carrier = box.session is None
        carrier = box.session = session if box.session is None else box.session
        for start in starts:
            self._begin(box, start)
        try:
            yield Accepted(self._replica_id, carrier, self.energy_source)
            while is_carrier and (items := await box.take(self._linger_s, self._interval_s)) is not None:
                yield items
        finally:
            if is_carrier:
                self._close(gateway, box)

    def cancel(self, gateway: str, ids: Sequence[int]) -> dict[int, Spent]:
        """End choices at once. Returns what each has taken. Ids that are not in it have ended: what
        they took is said by their last item."""
        box = self._boxes.get(gateway)
        choices = box.choices if box is not None else {}
        reading = self._time.read(self._clock())
        spent: dict[int, Spent] = {}
        for number in ids:
            choice = choices.get(number)
            if choice is not None and choice.cancel():
                spent[number] = self._spend(choice, choice.used_until(reading))
        return spent

    def _spend(self, choice: _Running, used_s: float) -> Spent:
        """What is said of a choice that ends: once."""
        joules = None if self._energy is None else self._energy.take(used_s)
        choice.told = Spent(used_s, joules, self.energy_source)
        return choice.told

    def _close(self, gateway: str, box: Outbox[_Running]) -> None:
        box.session = None
        if self._boxes.get(gateway) is box:
            del self._boxes[gateway]
        for choice in box.choices.values():
            choice.cancel()

    @property
    def energy_source(self) -> str:
        """Where its joules come from."""
        return ESTIMATE if self._energy is None else self._energy.source

    # -- numbers -----------------------------------------------------------------------------------------------------

    @property
    def num_choices(self) -> int:
        """Choices that have not ended."""
        return len(self._tasks)

    def queued_s(self) -> float:
        """Predicted busy seconds that the choices here still need."""
        shared_s = self._time.read(self._clock())
        return sum(
            max(0.0, choice.predicted_s - choice.used_until(shared_s))
            for box in self._boxes.values()
            for choice in box.choices.values()
            if not choice.is_over
        )

    def busy_s(self) -> float:
        """Seconds in which at least one choice was on the engine."""
        return self._time.busy_s(self._clock())

    async def stop(self) -> None:
        """Refuse what comes, end what runs. Idempotent."""
        self._is_stopping = True
        for task in self._tasks:
            task.cancel()
        while tasks := self._tasks | self._looks:  # a choice takes its second look with it
            await asyncio.wait(tasks)

    # -- choices -----------------------------------------------------------------------------------------------------

    def _begin(self, box: Outbox[_Running], start: ChoiceStart) -> None:
        # A context of its own: this choice outlives the call that brought it.
        start = start._replace(request=limited(start.request, start.guard, self._calibration))
        choice = _Running(predicted_s=start.predicted_s)
        box.choices[start.id] = choice
        choice.task = asyncio.get_running_loop().create_task(self._run(box, choice, start), context=Context())
        self._tasks.add(choice.task)
        choice.task.add_done_callback(lambda task: self._ended(task, box, choice, start.id))

    def _ended(self, task: asyncio.Task[None], box: Outbox[_Running], choice: _Running, number: int) -> None:
        """Also for a task that was cancelled before its first step."""
        self._tasks.discard(task)
        box.choices.pop(number, None)
        if self._energy is not None:
            self._energy.forgo(max(0.0, choice.spent_s - choice.told.seconds))
        if task.cancelled() and not choice.is_over:
            self._tell(ChoiceEndedEarly(self._model, "cancelled"))

    async def _run(self, box: Outbox[_Running], choice: _Running, start: ChoiceStart) -> None:
        try:
            async with asyncio.timeout(max(0.0, start.remaining_s)):
                await self._generate(box, choice, start)
        except TimeoutError:
            late = DeadlineExceeded("the deadline passed; allow more latency_ms, or fewer tokens")
            self._fail(box, choice, start.id, late)
        except EngineFailed as error:
            self._fail(box, choice, start.id, await self._explained(error))
        except ServingError as error:
            self._fail(box, choice, start.id, error)
        except Exception:
            _log.exception("engine failed")
            failed = EngineFailed("the model failed on this request; retry, or change it")
            self._fail(box, choice, start.id, failed)

    @asynccontextmanager
    async def _slot(self, choice: _Running | Used, start: ChoiceStart) -> AsyncIterator[None]:
        deadline_s = self._clock() + start.remaining_s
        held_bytes = self._engine.held_bytes(start.request)
        self._check_kv(start.tenant, held_bytes)
        self._kv_bytes[start.tenant] += held_bytes
        try:
            async with self._turn(choice, start, deadline_s, held_bytes):
                yield
        finally:
            self._kv_bytes[start.tenant] -= held_bytes
            if not self._kv_bytes[start.tenant]:
                del self._kv_bytes[start.tenant]

    def _check_kv(self, tenant: str, wanted: int) -> None:
        """Raises: TooManyBytes; InvalidRequest: it never fits."""
        limit, held = self._max_kv_bytes.get(tenant), self._kv_bytes[tenant]
        if limit is None or held + wanted <= limit:
            return
        why = f"needs up to {wanted} bytes for keys and values; limit of tenant {tenant!r} is {limit} (max_kv_bytes)"
        if wanted > limit:
            raise InvalidRequest(f"this chat alone {why}; lower max_tokens, or send less", param="max_tokens")
        raise TooManyBytes(
            f"this chat {why}, of which {held} are taken; retry in {_RETRY_S:g} s, or lower max_tokens",
            retry_after_s=_RETRY_S,
        )

    @asynccontextmanager
    async def _turn(
        self, choice: _Running | Used, start: ChoiceStart, deadline_s: float, held_bytes: int
    ) -> AsyncIterator[None]:
        turn = SlotTurn(
            start.tenant,
            start.rank,
            start.predicted_s,
            deadline_s=deadline_s,
            held_bytes=held_bytes,
            elsewhere_j=start.elsewhere_j,
        )
        num_waiting = self._slots.waiting
        if not await self._slots.acquire(turn):
            if turn.refused is not RejectReason.QUEUE_FULL:
                raise TimeoutError
            raise QueueFull(
                f"{num_waiting} requests wait for this replica, which is the limit; retry in {_RETRY_S:g} s",
                retry_after_s=_RETRY_S,
            )
        try:
            yield
        finally:
            self._slots.release(turn, choice.used_s)

    def _fail(self, box: Outbox[_Running], choice: _Running, number: int, error: ServingError) -> None:
        if choice.is_over:
            return
        self._tell(ChoiceEndedEarly(self._model, error.code))
        spent = self._spend(choice, choice.spent_s)
        box.put(Failure(number, error, spent.seconds, spent.joules), is_urgent=True)

    async def _explained(self, error: EngineFailed) -> ServingError:
        """A dead engine is a lost replica: the request may be sent to another one, and no more may come here."""
        try:
            async with asyncio.timeout(_HEALTH_TIMEOUT_S):
                await self._engine.check_health()
        except (EngineFailed, TimeoutError):
            self._is_stopping = True
            return ReplicaLost("the model's process ended; retry")
        return error

    async def _generate(self, box: Outbox[_Running], choice: _Running, start: ChoiceStart) -> None:
        if self._is_stopping:
            raise Draining("this replica is stopping; retry", retry_after_s=_RETRY_S)
        arrived_s = self._clock()
        async with self._slot(choice, start):
            started_s = self._clock()
            choice.started_at = self._time.enter(started_s)
            teller = Teller(start, self._time, self._clock, choice.started_at, started_s - arrived_s)
            watch = self._watched(choice, start)

            def say(delta: EngineDelta) -> bool:
                delta, is_enough = self._guarded(choice, watch, delta)
                is_first = teller.first_s is None
                if is_first:
                    self._tell(FirstToken(self._model, self._clock() - arrived_s, started_s - arrived_s))
                if (item := teller.add(delta)) is not None:
                    if item.finish_reason is not None:
                        item = self._last(choice, watch, item)
                        self._tell(ChoiceFinished(self._model, teller.num_tokens, teller.answer_s))
                    box.put(item, is_urgent=is_first or item.finish_reason is not None)
                return is_enough

            try:
                await self._engine.run(start.request, say)
            finally:
                if choice.look is not None:
                    choice.look.stop()
                now_s = self._clock()
                choice.used_s = self._time.leave(now_s) - choice.started_at
                spans = (("queue", started_s - arrived_s), ("run", now_s - started_s))
                record(start.traceparent, *spans, run=choice.told.attributes if choice.told.seconds else None)
        if not choice.is_over:
            raise EngineFailed("the model stopped before the answer was complete; retry")

    # -- the guard ---------------------------------------------------------------------------------------------------

    def _watched(self, choice: _Running, start: ChoiceStart) -> Watch | None:
        if start.guard is None:
            return None
        watch = watch_for(start.request, start.guard, self._calibration, sees_apart=self._engine.sees_apart)
        again = purified_request(start.request, start.guard)
        # Before what its tenant has waiting; what others served the tenant has been told.
        beside = start._replace(rank=min(0, start.rank) - 1, elsewhere_j=0.0)

        def room(used: Used, request: EngineRequest) -> AbstractAsyncContextManager[None]:
            return self._slot(used, beside._replace(request=request))

        choice.look = SecondLook(self._engine, again, watch, room, self._time, self._clock)
        return watch

    def _guarded(self, choice: _Running, watch: Watch | None, delta: EngineDelta) -> tuple[EngineDelta, bool]:
        """What is said of a choice, and whether it ends with that though its engine would go on."""
        if watch is None:
            return delta, False
        now = watch.push(delta.token_ids, delta.log_p_ends, delta.finish_reason is not None)
        if now is Next.END:
            return delta._replace(text=delta.text + delta.held_text, finish_reason=FinishReason.LENGTH), True
        if now is Next.LOOK_TWICE and choice.look is not None and (task := choice.look.begin()) is not None:
            self._looks.add(task)
            task.add_done_callback(self._looks.discard)
        return delta, False

    def _last(self, choice: _Running, watch: Watch | None, item: Delta) -> Delta:
        """The end of a choice, with all that it cost. Nothing is said of it after that."""
        choice.is_over = True
        look_s = 0.0
        if watch is not None and choice.look is not None:
            choice.look.stop()
            look_s = choice.look_s(0.0)
            item = item._replace(decode_s=item.decode_s + look_s, guard=said(watch, look_s))
        return item._replace(joules=self._spend(choice, item.prefill_s + item.decode_s).joules)
