"""An HTTP server of known pacing: the standard that the load generator is measured against.

It speaks ``POST /v1/classify`` and nothing else, does no work, and answers request number k (in the order of arrival)
``plan.service_s(k)`` seconds after it began to serve it, with the status ``plan.status(k)``. It keeps its own log on
CLOCK_MONOTONIC, which generator and server share on one machine, so that what the generator claims can be checked
against what happened. ``python -m loadtest.fake_server PORT`` runs it alone.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How the server behaves."""

    service_s: Callable[[int], float] = lambda _: 0.0
    """Seconds of service of request k."""
    status: Callable[[int], int] = lambda _: 200
    """HTTP status of request k; 0 closes the connection instead of answering."""
    num_servers: int | None = None
    """Requests served at once, in order of arrival; ``None`` serves all at once."""


@dataclass(slots=True)
class Served:
    """The server's own log of one request, on ``time.monotonic``."""

    received_at_s: float
    replied_at_s: float | None = None


class FakeServer:
    """``start`` it, read ``port`` and ``log``, ``stop`` it."""

    def __init__(self, plan: Plan | None = None) -> None:
        self.plan = plan or Plan()
        self.log: list[Served] = []
        self.port = 0
        self._slots = None if self.plan.num_servers is None else asyncio.Semaphore(self.plan.num_servers)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections: set[asyncio.Transport] = set()

    @property
    def url(self) -> str:
        """Base URL."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self, port: int = 0) -> None:
        """Listen on the loopback interface; port 0 takes a free one."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", port, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close everything, unanswered requests included."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in list(self._connections):
            connection.abort()
        await asyncio.sleep(0)

    def connected(self, transport: asyncio.Transport, is_open: bool) -> None:
        """A connection came or went."""
        (self._connections.add if is_open else self._connections.discard)(transport)

    def received(self, transport: asyncio.Transport) -> None:
        """A whole request came: serve it as planned."""
        index = len(self.log)
        self.log.append(Served(time.monotonic()))
        if self._slots is None and self.plan.service_s(index) == 0.0:
            self._reply(index, transport)  # without a task: this path is for measuring the generator
            return
        task = asyncio.get_running_loop().create_task(self._serve(index, transport))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, index: int, transport: asyncio.Transport) -> None:
        if self._slots is None:
            await _hold(self.plan.service_s(index))
        else:
            async with self._slots:
                await _hold(self.plan.service_s(index))
        self._reply(index, transport)

    def _reply(self, index: int, transport: asyncio.Transport) -> None:
        status = self.plan.status(index)
        self.log[index].replied_at_s = time.monotonic()
        if status == 0:
            transport.abort()
        else:
            transport.write(_ANSWERS[status == 200] if status in (200, 500) else _answer(status))


class _Connection(asyncio.Protocol):
    def __init__(self, server: FakeServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server.connected(transport, True)

    def connection_lost(self, exc: Exception | None) -> None:
        assert self._transport is not None
        self._server.connected(self._transport, False)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._buffer += data
        while (size := _request_size(self._buffer)) is not None and len(self._buffer) >= size:
            self._buffer = self._buffer[size:]
            self._server.received(self._transport)


def _request_size(buffer: bytes) -> int | None:
    """Length of the first request in bytes, or ``None`` while its head is not whole."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = buffer[:end].lower()
    at = head.find(b"content-length:")
    length = 0 if at < 0 else int(head[at + 15 :].split(b"\r\n", 1)[0])
    return end + 4 + length


async def _hold(service_s: float) -> None:
    """Never shorter than ``service_s``, whatever the timer's rounding."""
    end_s = time.monotonic() + service_s
    while (left_s := end_s - time.monotonic()) > 0:  # noqa: ASYNC110  (nothing but time ends this wait)
        await asyncio.sleep(left_s)


def _answer(status: int) -> bytes:
    if status == 200:
        body: dict[str, object] = {
            "object": "list",
            "model": "fake",
            "results": [{"index": 0, "label": "7", "score": 0.9, "exit": 1, "top_k": [{"label": "7", "score": 0.9}]}],
            "vireo": {
                "operating_point": "fixed",
                "energy_j": 0.5,
                "energy_source": "estimate",
                "queue_ms": 0.0,
                "compute_ms": 1.0,
                "cache": "miss",
                "degraded": [],
                "guard": {},
            },
        }
    else:
        body = {"error": {"code": f"planned_{status}", "message": "as planned", "type": "server_error", "param": None}}
    encoded = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} Planned\r\ncontent-type: application/json\r\ncontent-length: {len(encoded)}\r\n\r\n"
    return head.encode() + encoded


_ANSWERS = {True: _answer(200), False: _answer(500)}


async def _main(port: int) -> None:
    server = FakeServer()
    await server.start(port)
    print(server.port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
