"""What stands before Ray Serve's own HTTP handler in a gateway, because of what that one makes of a request by itself.

It takes headers as orders to itself, answers a byte in one that is no UTF-8 with a plain 500, and asks for the body of
every request at once, by which uvicorn gives leave to send it. And its event loop, uvloop's, accepts one connection
each time round, which is some tens a second when it is busy: new ones wait for seconds behind requests that came later.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

import uvicorn
from starlette.middleware import Middleware

from serving.front.front import is_request_id
from serving.front.grpc.registration import take_no_compression
from serving.front.http.body import Receive
from serving.front.http.call import BODY_WANTED, Scope, Send

_ORDERS: Final = {
    b"x-session-id",
    b"serve-multiplexed-model-id",
    b"x-request-timeout-seconds",
    b"x-request-disconnect-disabled",
}
"""Headers by which Ray would choose a replica, end a request, or leave one running whose client has gone."""


_NUM_ACCEPTED: Final = 32
"""Connections that are accepted each time round the loop."""


def before_ray() -> list[Middleware]:
    """Called by Ray Serve, by its name, before gateways and its own proxies start their servers."""
    take_no_compression()
    if uvicorn.Server.startup is _startup:
        uvicorn.Server.startup = _startup_with_more_listeners  # type: ignore[assignment]
    return [Middleware(BeforeRay)]


_startup = uvicorn.Server.startup


async def _startup_with_more_listeners(server: uvicorn.Server, sockets: list[socket.socket] | None = None) -> None:
    """Listen by so many descriptors of each socket: the loop accepts one connection by each (libuv since 1.45)."""
    more = [one.dup() for one in sockets or () for _ in range(_NUM_ACCEPTED - 1)]
    await _startup(server, [*sockets, *more] if sockets else sockets)


class BeforeRay:
    """ASGI middleware."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] in ("http", "websocket"):
            scope["headers"] = headers = _cleaned(scope["headers"])
            if scope.get("http_version") == "1.0":
                send = _until_close(send)
            if any(name == b"expect" for name, _value in headers):
                receive, send = _when_wanted(receive, send, scope)
        await self._app(scope, receive, send)


def _cleaned(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return headers without orders to Ray, and with one well-formed request id."""
    kept = [pair for pair in headers if pair[0] != b"x-request-id" and pair[0].replace(b"_", b"-") not in _ORDERS]
    ids = [value.decode("latin-1") for name, value in headers if name == b"x-request-id"]
    request_id = ids[0] if len(ids) == 1 and is_request_id(ids[0]) else uuid.uuid4().hex
    kept.append((b"x-request-id", request_id.encode()))
    return kept


def _when_wanted(receive: Receive, send: Send, scope: Scope) -> tuple[Receive, Send]:
    """Hold ``receive`` back until the application reads the body: it may refuse the request without.

    Once the answer has begun, uvicorn gives no leave any more, and Ray has to hear of a client that goes.
    """
    wanted = scope[BODY_WANTED] = asyncio.Event()

    async def receive_when_wanted() -> MutableMapping[str, Any]:
        await wanted.wait()
        return await receive()

    async def send_and_listen(message: MutableMapping[str, Any]) -> None:
        await send(message)
        wanted.set()

    return receive_when_wanted, send_and_listen


def _until_close(send: Send) -> Send:
    """End an answer of unknown length by closing the connection: HTTP/1.0 has no chunks, which uvicorn would send."""
    cycle: Any = getattr(send, "__self__", None)
    if not hasattr(cycle, "chunked_encoding"):
        return send
    is_unbounded = False

    async def send_until_close(message: MutableMapping[str, Any]) -> None:
        nonlocal is_unbounded
        if message["type"] == "http.response.start":
            is_unbounded = all(name.lower() != b"content-length" for name, _value in message.get("headers", ()))
            if is_unbounded:
                cycle.chunked_encoding, cycle.expected_content_length = False, sys.maxsize
        elif is_unbounded and not message.get("more_body", False):
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    return send_until_close
