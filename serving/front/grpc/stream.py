"""A bidirectional stream: many requests in flight, answers as they are ready, nothing left behind.

At most ``limit`` requests are unanswered at a time, and reading pauses too while they have ``max_bytes`` or more. An
answer counts as given once the client has taken it, so that a client that does not read stops us from reading. When the
client leaves, everything in flight is cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from typing import Any, TypeVar

from serving.front.grpc.messages import is_cancelled, let_go

Response = TypeVar("Response")


async def answer_stream(
    requests: AsyncIterable[bytes], answer: Callable[[bytes], Awaitable[Response]], limit: int, max_bytes: int
) -> AsyncGenerator[Response, None]:
    """Yield one answer per request, in the order in which they are ready. ``answer`` must not raise."""
    room = _Room(limit, max_bytes)
    ready: asyncio.Queue[tuple[Response, int] | None] = asyncio.Queue()
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(request: bytes) -> None:
        ready.put_nowait((await answer(request), len(request)))

    async def read() -> None:
        async for request in requests:
            task = asyncio.create_task(serve(request))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            await room.take(len(request))
        if tasks and not is_cancelled(requests):
            await asyncio.wait(tasks)

    reader = asyncio.create_task(read())
    reader.add_done_callback(lambda _: ready.put_nowait(None))
    try:
        while (one := await ready.get()) is not None:
            response, num_bytes = one
            yield response
            room.give_back(num_bytes)
    finally:
        left = (reader, *tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await let_go(requests)


class _Room:
    """What a stream may hold unanswered."""

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self._requests_left, self._bytes_left = max_requests, max_bytes
        self._changed = asyncio.Event()

    async def take(self, num_bytes: int) -> None:
        """Count a request, and return when there is room for another."""
        self._requests_left -= 1
        self._bytes_left -= num_bytes
        while self._requests_left <= 0 or self._bytes_left <= 0:
            self._changed.clear()
            await self._changed.wait()

    def give_back(self, num_bytes: int) -> None:
        """Count one less."""
        self._requests_left += 1
        self._bytes_left += num_bytes
        self._changed.set()
