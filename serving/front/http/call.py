"""One HTTP request and its answer, on bare ASGI: no dependency injection, no per-request middleware.

Once the body is read, a client that leaves is noticed by the server around this application, which then cancels the
task (Ray Serve does), or by the handler itself (chat does); either way the service hears of it and frees what the call
holds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import orjson
import structlog

from serving.domain import Surface
from serving.errors import ServingError
from serving.front.front import Front, Visit, request_id
from serving.front.http.body import Headers, Receive, header
from serving.front.status import http_error, to_serving_error
from serving.telemetry.events import UNKNOWN

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
HeaderList = list[tuple[bytes, bytes]]

JSON_TYPE = b"application/json"


@dataclass(slots=True)
class Call:
    """A request whose caller is known and whose body is not yet read."""

    scope: Scope
    receive: Receive
    send: Send
    headers: Headers
    request_id: str
    adds_request_id: bool
    tenant: str = UNKNOWN
    visit: Visit | None = None

    @property
    def path_params(self) -> dict[str, str]:
        """Parts of the path that its pattern names."""
        params: dict[str, str] = self.scope.get("path_params", {})
        return params

    async def start(self, headers: HeaderList, status: int = 200) -> None:
        """Begin a successful answer that is sent piece by piece."""
        if self.adds_request_id:
            headers = [*headers, (b"x-request-id", self.request_id.encode())]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def send_piece(self, data: bytes, *, is_last: bool = False) -> None:
        """Send a piece of an answer that was begun."""
        await self.send({"type": "http.response.body", "body": data, "more_body": not is_last})

    def known(self, error: Exception) -> ServingError:
        """Return the error as the caller may see it; log it if it is not one of ours, and record it."""
        known = to_serving_error(error)
        if known is not error:
            structlog.get_logger(__name__).error("request_failed", request_id=self.request_id, exc_info=error)
        if self.visit is not None:
            self.visit.outcome = known.code
        return known


@dataclass(frozen=True, slots=True)
class Answer:
    """What is sent back."""

    body: bytes
    status: int = 200
    content_type: bytes = JSON_TYPE
    headers: tuple[tuple[bytes, bytes], ...] = ()


Handler = Callable[[Call], Awaitable[Answer | None]]
"""None: the handler has sent the answer itself."""


def json_answer(document: Any) -> Answer:
    """Return a JSON answer."""
    return Answer(orjson.dumps(document))


class Endpoint:
    """An ASGI application for one path. It answers every request, whatever its handler raises.

    ``surface``: an inference path, reported to the metrics. ``needs_key``: refuses callers without a tenant.
    """

    def __init__(
        self, front: Front, handler: Handler, *, surface: Surface | None, needs_key: bool, adds_request_id: bool
    ) -> None:
        self._front = front
        self._handler = handler
        self._surface = surface
        self._needs_key = needs_key
        self._adds_request_id = adds_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        headers: Headers = dict(scope["headers"])
        proposed_id = _latin(headers.get(b"x-request-id"))
        call = Call(scope, receive, send, headers, request_id(proposed_id), self._adds_request_id)
        answer = await (self._answer(call) if self._surface is None else self._observed(call, self._surface))
        if answer is not None:
            await send_answer(send, answer, call.request_id if self._adds_request_id else None)

    async def _observed(self, call: Call, surface: Surface) -> Answer | None:
        visit = call.visit = self._front.begin(surface)
        try:
            return await self._answer(call)
        finally:
            self._front.end(visit)

    async def _answer(self, call: Call) -> Answer | None:
        try:
            if self._needs_key:
                call.tenant = self._authenticate(call)
            return await self._handler(call)
        except Exception as error:
            return error_answer(call.known(error))

    def _authenticate(self, call: Call) -> str:
        limits, client = self._front.limits, call.scope.get("client")
        tenant = self._front.authenticator.authenticate(
            header(call.headers, b"authorization", limits),
            header(call.headers, b"x-api-key", limits),
            client[0] if client else None,
        )
        if call.visit is not None:
            call.visit.tenant = tenant
        return tenant


def error_answer(error: ServingError) -> Answer:
    """Return the answer of a failed request."""
    status, headers, body = http_error(error)
    return Answer(body, status, JSON_TYPE, tuple(headers))


async def send_answer(send: Send, answer: Answer, request_id: str | None) -> None:
    """Send an answer (ASGI)."""
    headers: HeaderList = [
        (b"content-type", answer.content_type),
        (b"content-length", str(len(answer.body)).encode()),
        *answer.headers,
    ]
    if request_id is not None:
        headers.append((b"x-request-id", request_id.encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


def _latin(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")
