"""What reaches Ray Serve's own handler, over real connections to the HTTP server that Ray uses."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
import uvloop

from serving.gateway.before_ray import BeforeRay, before_ray
from tests.support.clients import FrontDoor
from tests.support.ports import free_port
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(60)

JSON = "content-type: application/json"


@dataclass
class RayLike:
    """Asks for the body at once, as Ray Serve's handler does, and decodes every header as UTF-8."""

    app: Callable[..., Awaitable[None]]
    headers: dict[str, str] = field(default_factory=dict)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        self.headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        messages: asyncio.Queue[Any] = asyncio.Queue()

        async def fetch() -> None:
            while True:
                messages.put_nowait(message := await receive())
                if message["type"] == "http.disconnect":
                    return

        fetching = asyncio.create_task(fetch())
        try:
            await self.app(scope, messages.get, send)
        finally:
            fetching.cancel()


@asynccontextmanager
async def served(app: Callable[..., Awaitable[None]]) -> AsyncIterator[tuple[int, RayLike]]:
    ray, port = RayLike(app), free_port()
    server = uvicorn.Server(uvicorn.Config(BeforeRay(ray), port=port, lifespan="off", log_level="critical"))
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    try:
        yield port, ray
    finally:
        server.should_exit = True
        await serving


async def answer(port: int, *lines: str, body: bytes = b"", until: bytes | None = None) -> bytes:
    """Send a request; return what comes until the server closes, or until ``until`` has come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
    try:
        return await (reader.read() if until is None else reader.readuntil(until))
    finally:
        writer.close()


@pytest.mark.parametrize(
    "order",
    ["x-session-id: \xe9", "x_session_id: a", "serve-multiplexed-model-id: \xe9", "serve_multiplexed_model_id: a",
     "x-request-timeout-seconds: 0.001", "x-request-disconnect-disabled: ?1", "x-request-id: \xe9"],
)  # fmt: skip
async def test_orders_to_ray_do_not_reach_it(order: str) -> None:
    async with served(FrontDoor().app) as (port, ray):
        got = await answer(port, "GET /healthz HTTP/1.1", "host: localhost", order, "connection: close")
    assert got.startswith(b"HTTP/1.1 200 ")
    assert ray.headers.keys() == {"host", "connection", "x-request-id"}


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (["abc-1.2_X"], True),
        (["a b"], False),
        (["a,b"], False),
        (["a" * 129], False),
        ([""], False),
        (["a", "a"], False),
    ],
)
async def test_one_well_formed_request_id_reaches_ray(sent: list[str], kept: bool) -> None:
    async with served(FrontDoor().app) as (port, ray):
        ids = [f"x-request-id: {one}" for one in sent]
        got = await answer(port, "GET /healthz HTTP/1.1", "host: localhost", *ids, "connection: close")
    assert (ray.headers["x-request-id"] == sent[0]) is kept
    assert f"x-request-id: {ray.headers['x-request-id']}".encode() in got


REFUSED = {
    "unknown_path": (404, ["POST /v1/nothing HTTP/1.1", JSON, "content-length: 9"]),
    "content_type": (415, ["POST /v1/classify HTTP/1.1", "content-type: text/plain", "content-length: 9"]),
    "too_long": (413, ["POST /v1/classify HTTP/1.1", JSON, "content-length: 999999999"]),
    "method": (405, ["PUT /v1/classify HTTP/1.1", JSON, "content-length: 9"]),
    "two_keys": (401, ["POST /v1/classify HTTP/1.1", JSON, "content-length: 9", "x-api-key: a", "x-api-key: a"]),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_body_that_will_be_refused_is_not_asked_for(name: str) -> None:
    status, lines = REFUSED[name]
    async with served(FrontDoor().app) as (port, _ray):
        got = await answer(port, *lines, "host: localhost", "expect: 100-continue", until=b'"type"')
    assert got.startswith(f"HTTP/1.1 {status} ".encode())


async def test_body_is_asked_for_when_it_is_read() -> None:
    async with served(FrontDoor().app) as (port, _ray):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        lines = [
            "POST /v1/classify HTTP/1.1",
            "host: localhost",
            JSON,
            "content-length: 2",
            "expect: 100-continue",
            "",
            "",
        ]
        writer.write("\r\n".join(lines).encode())
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"{}")
        assert (await reader.readline()).startswith(b"HTTP/1.1 400 ")
        writer.close()


async def test_client_that_goes_is_heard_of_though_it_never_sent_the_body_that_it_announced() -> None:
    gone = asyncio.Event()

    async def stream(_scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()

    async with served(stream) as (port, _ray):
        got = await answer(port, "GET / HTTP/1.1", "host: localhost", "expect: 100-continue", until=b"data: 1\n\n")
        await gone.wait()
    assert got.startswith(b"HTTP/1.1 200 ")


async def test_stream_to_http_1_0_ends_with_the_connection() -> None:
    async def stream(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for piece in (b"data: 1\n\n", b"data: 2\n\n"):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: 3\n\n"})

    async with served(stream) as (port, _ray):
        head, _, body = (await answer(port, "GET / HTTP/1.0", "connection: keep-alive")).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    assert body == b"data: 1\n\ndata: 2\n\ndata: 3\n\n"


async def test_answer_of_known_length_to_http_1_0_is_sent_with_it() -> None:
    async with served(FrontDoor().app) as (port, _ray):
        head, _, body = (await answer(port, "GET /healthz HTTP/1.0")).partition(b"\r\n\r\n")
    assert b"content-length: 14" in head
    assert body == b'{"ready":true}'


def test_many_connections_are_accepted_each_time_round_the_loop() -> None:
    """uvloop accepts one, however many have come."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(_rounds_to_accept(64)) <= 16


async def _rounds_to_accept(number: int) -> int:
    before_ray()
    listener = socket.create_server(("127.0.0.1", 0), backlog=number)
    config = uvicorn.Config(FrontDoor().app, lifespan="off", log_level="critical")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await until(lambda: server.started)
    with ExitStack() as clients:
        for _ in range(number):
            clients.enter_context(socket.create_connection(listener.getsockname()))
        rounds = 0
        while len(server.server_state.connections) < number:
            await asyncio.sleep(0)
            rounds += 1
    server.should_exit = True
    await serving
    return rounds
