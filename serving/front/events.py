"""Between a service that makes events and a client that reads: what waits, in order, joined where it can be.

This is the one buffer of a request on a gateway: whoever makes an event puts it here by a plain call.

The service is never held up by a slow client, so that it is done with the request, and its memory free, as soon as
possible; what waits is bounded by what one answer may hold.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from types import TracebackType
from typing import Generic, Self, TypeAlias, TypeVar

from serving.errors import BackendError, Cancelled
from serving.front.http.body import Receive

Event = TypeVar("Event")
Work: TypeAlias = Callable[[Callable[[Event], None]], Awaitable[None]]
"""What makes events: called with where to put them."""


def pumped(events: AsyncGenerator[Event, None]) -> Work[Event]:
    """The work of a generator; it is closed when the work is cancelled."""

    async def work(say: Callable[[Event], None]) -> None:
        async with aclosing(events):
            async for event in events:
                say(event)

    return work


class EventQueue(Generic[Event]):
    """Runs a service's work in a task of its own while entered; leaving cancels it, however far it has come.

    ``receive``: the ASGI channel of a request whose body is read, where the client's leaving is heard of.
    ``silence_s``: after so long without an event, ``take`` returns nothing, so that a sign of life can be sent.
    """

    def __init__(
        self,
        work: Work[Event],
        *,
        receive: Receive | None = None,
        silence_s: float | None = None,
    ) -> None:
        self._work = work
        self._receive = receive
        self._silence_s = silence_s
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Event] = []
        self._end: BaseException | None = None
        """Why no more events will come."""
        self._is_gone = False
        self._is_silent = False
        self._last_s = self._loop.time()
        self._waker: asyncio.Future[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        self._tasks.append(asyncio.create_task(self._run()))
        if self._receive is not None:
            self._tasks.append(asyncio.create_task(self._listen(self._receive)))
        if self._silence_s is not None:
            self._timer = self._loop.call_later(self._silence_s, self._tick, self._silence_s)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def take(self) -> list[Event]:
        """Return everything that waits; wait if nothing does. An empty list says that it has been silent for long.

        Raises:
            Cancelled: the client is gone.
            Whatever the work raised, once all before it is taken; BackendError: it just ended.
        """
        while True:
            if self._is_gone:
                raise Cancelled("the client went away")
            if self._waiting:
                taken, self._waiting = self._waiting, []
                self._last_s = self._loop.time()
                return taken
            if self._end is not None:
                raise self._end
            if self._is_silent:
                self._is_silent = False
                return []
            self._waker = self._loop.create_future()
            await self._waker

    def _wake(self) -> None:
        if self._waker is not None and not self._waker.done():
            self._waker.set_result(None)

    def _put(self, event: Event) -> None:
        self._waiting.append(event)
        self._wake()

    async def _run(self) -> None:
        try:
            await self._work(self._put)
            self._end = BackendError("the answer broke off; retry")
        except Exception as error:
            self._end = error
        except asyncio.CancelledError:
            self._end = BackendError("the answer was cancelled by the server; retry")
            raise
        finally:
            self._wake()

    async def _listen(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._is_gone = True
        self._tasks[0].cancel()  # the work ends now, even if the task that sends is stuck in a full socket
        self._wake()

    def _tick(self, silence_s: float) -> None:
        now_s = self._loop.time()
        left_s = self._last_s + silence_s - now_s
        if left_s <= 0:
            self._is_silent = True
            self._last_s = now_s
            self._wake()
            left_s = silence_s
        self._timer = self._loop.call_later(left_s, self._tick, silence_s)
