"""Chat replicas that never leave the process: real hubs around fake engines, which a test can kill, block or break."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing, suppress

from schedulers.guard.calibration import GuardCalibration
from serving.delivery.stream.links import ChatLinks, Route
from serving.delivery.stream.wire import ChoiceStart, EngineRequest, Frame, Item
from serving.energy.meter import Meter
from serving.energy.replica import ReplicaEnergy
from serving.errors import ServingError
from serving.replica.chat.base import ChatEngine
from serving.replica.chat.hub import ChoiceHub
from serving.telemetry.events import ChoiceEndedEarly, ChoiceFinished, Event

WATTS = 5.0
"""Declared power of a replica, which has no meter."""
DELAY_S = 0.001
"""Time of a message from one side to the other."""


class ReplicaGone(Exception):
    """Stands for Ray's errors about a dead actor."""


class HubRecorder:
    """A sink of what a hub tells."""

    def __init__(self) -> None:
        self.num_finished = 0
        self.early: list[str] = []

    def __call__(self, event: Event) -> None:
        self.num_finished += isinstance(event, ChoiceFinished)
        if isinstance(event, ChoiceEndedEarly):
            self.early.append(event.reason)


class Mailbox:
    """A listener whose test takes what it has heard."""

    def __init__(self, links: ChatLinks, choices: Sequence[ChoiceStart], route: Route) -> None:
        self._items: list[Item] = []
        self._places: dict[int, int] = {}
        self._error: ServingError | None = None
        self._news = asyncio.Event()
        self.sent = links.start(choices, route, self)
        self.close = self.sent.close

    def hear(self, index: int, item: Item) -> None:
        self._items.append(item)
        self._places[item.id] = index
        self._news.set()

    def fail(self, error: ServingError) -> None:
        self._error = self._error or error
        self._news.set()

    @property
    def open_ids(self) -> Collection[int]:
        return self.sent.open_ids

    @property
    def replica_id(self) -> str | None:
        return self.sent.replica_id

    def index(self, item: Item) -> int:
        return self._places[item.id]

    async def next(self) -> list[Item]:
        """All that has come; then what ended it is raised."""
        while not self._items:
            if self._error is not None:
                raise self._error
            self._news.clear()
            await self._news.wait()
        taken, self._items = self._items, []
        return taken


class Replica:
    """One replica: a hub, its engine, and whether the process lives."""

    def __init__(
        self,
        name: str,
        engine: ChatEngine,
        *,
        max_running: int = 16,
        max_waiting: int = 64,
        interval_s: float = 0.0,
        linger_s: float = 1.0,
        max_kv_bytes: Mapping[str, int | None] | None = None,
        meter: Meter | None = None,
        calibration: GuardCalibration | None = None,
    ) -> None:
        self.name = name
        self.engine = engine
        self.told = HubRecorder()
        self.hub = ChoiceHub(
            engine,
            name,
            tell=self.told,
            max_running=max_running,
            max_waiting=max_waiting,
            interval_s=interval_s,
            energy=ReplicaEnergy(meter, watts=WATTS),
            clock=asyncio.get_running_loop().time,
            linger_s=linger_s,
            max_kv_bytes=max_kv_bytes or {},
            calibration=calibration,
        )
        self.is_dead = asyncio.Event()
        self.is_silent = False
        """Messages get lost: nothing arrives, nothing breaks."""
        self.num_opens = 0

    async def kill(self) -> None:
        """As SIGKILL: every stream breaks, nothing runs any more."""
        self.is_dead.set()
        await self.hub.stop()


class LocalCalls:
    """``ReplicaCalls`` to the first replica that is alive and not to be avoided."""

    def __init__(self, *replicas: Replica) -> None:
        self.replicas = list(replicas)
        self.routes: list[Route] = []
        self.cancelled: list[tuple[str, list[int]]] = []
        self.open_calls: list[LocalCall] = []

    def open(self, gateway: str, session: int, starts: list[ChoiceStart], route: Route) -> LocalCall:
        self.routes.append(route)
        call = LocalCall(self._choose(route), lambda replica: replica.hub.open(gateway, session, starts))
        self.open_calls.append(call)
        return call

    async def cancel(self, replica_id: str, gateway: str, ids: list[int]) -> dict[int, float]:
        await asyncio.sleep(DELAY_S)
        self.cancelled.append((replica_id, ids))
        for replica in self.replicas:
            if replica.name == replica_id and not replica.is_dead.is_set():
                return replica.hub.cancel(gateway, ids)
        raise ReplicaGone(replica_id)

    def is_lost(self, error: BaseException) -> bool:
        return isinstance(error, ReplicaGone)

    def die(self) -> None:
        """The gateway's process is gone: the replicas see its connections break."""
        for call in self.open_calls:
            call.cancel()

    def _choose(self, route: Route) -> Callable[[], Replica | None]:
        def choose() -> Replica | None:
            alive = [replica for replica in self.replicas if not replica.is_dead.is_set()]
            preferred = [replica for replica in alive if replica.name not in route.avoid]
            return next(iter(preferred or alive), None)

        return choose


class LocalCall:
    """A streaming call: waits for a replica as Ray's router does, then reads its frames until one side is gone."""

    def __init__(
        self, choose: Callable[[], Replica | None], start: Callable[[Replica], AsyncGenerator[Frame, None]]
    ) -> None:
        self._choose = choose
        self._start = start
        self._queue: asyncio.Queue[Frame | Exception | None] = asyncio.Queue()
        self._task = asyncio.get_running_loop().create_task(self._run())

    def cancel(self) -> None:
        self._task.cancel()

    async def __aiter__(self) -> AsyncIterator[Frame]:
        while (frame := await self._queue.get()) is not None:
            if isinstance(frame, Exception):
                raise frame
            yield frame
        if self._task.cancelled():
            raise asyncio.CancelledError

    async def _run(self) -> None:
        try:
            replica = await self._find()
            replica.num_opens += 1
            reader = asyncio.get_running_loop().create_task(self._read(replica))
            death = asyncio.get_running_loop().create_task(replica.is_dead.wait())
            try:
                await asyncio.wait({reader, death}, return_when=asyncio.FIRST_COMPLETED)
                if death.done():
                    self._queue.put_nowait(ReplicaGone(replica.name))
                else:
                    reader.result()
            finally:
                for task in (reader, death):
                    task.cancel()
                    with suppress(asyncio.CancelledError):
                        await task
        finally:
            self._queue.put_nowait(None)

    async def _find(self) -> Replica:
        while True:
            if (replica := self._choose()) is not None:
                return replica
            await asyncio.sleep(0.1)

    async def _read(self, replica: Replica) -> None:
        await asyncio.sleep(DELAY_S)
        async with aclosing(self._start(replica)) as frames:
            async for frame in frames:
                await asyncio.sleep(DELAY_S)
                if not replica.is_silent:
                    self._queue.put_nowait(frame)


def engine_request(text: str = "prompt", max_tokens: int = 64, **fields: object) -> EngineRequest:
    """A request for the fake engine."""
    request = EngineRequest(
        request_id="",
        prompt_token_ids=tuple(text.encode()),
        images=(),
        max_tokens=max_tokens,
        temperature=0.0,
        top_p=1.0,
        seed=None,
        stop=(),
        json_schema=None,
        logprobs=None,
        logit_bias={},
        cache_salt="salt",
    )
    return request._replace(**fields)  # type: ignore[arg-type]
