"""A bidirectional stream: many requests in flight, answers as they are ready, nothing left behind.

At most ``limit`` requests are unanswered at a time. An answer counts as given once the client has taken it, so that a
client that does not read stops us from reading. When the client leaves, everything in flight is cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from typing import Any, TypeVar

from serving.ingress.grpc_messages import is_cancelled, let_go

Request = TypeVar("Request")
Response = TypeVar("Response")


async def answer_stream(
    requests: AsyncIterable[Request], answer: Callable[[Request], Awaitable[Response]], limit: int
) -> AsyncGenerator[Response, None]:
    """Yield one answer per request, in the order in which they are ready. ``answer`` must not raise."""
    slots = asyncio.Semaphore(limit)
    ready: asyncio.Queue[Response | None] = asyncio.Queue()
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(request: Request) -> None:
        ready.put_nowait(await answer(request))

    async def read() -> None:
        await slots.acquire()
        async for request in requests:
            task = asyncio.create_task(serve(request))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            await slots.acquire()
        if tasks and not is_cancelled(requests):
            await asyncio.wait(tasks)

    reader = asyncio.create_task(read())
    reader.add_done_callback(lambda _: ready.put_nowait(None))
    try:
        while (response := await ready.get()) is not None:
            yield response
            slots.release()
    finally:
        left = (reader, *tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await let_go(requests)
