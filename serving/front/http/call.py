"""One HTTP request and its answer, on bare ASGI: no dependency injection, no per-request middleware.

Once the body is read, a client that leaves is noticed by the server around this application, which then cancels the
task (Ray Serve does), or by the handler itself (chat does); either way the service hears of it and frees what the call
holds.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson

from serving.domain import Budget, Surface
from serving.errors import ServingError, UnsupportedMediaType
from serving.front.budget import budget_from_headers
from serving.front.front import BaseCall, Front, request_id, shown
from serving.front.http.body import Headers, Receive, check_repeated, header, headers_of
from serving.front.http.json_body import JsonReader
from serving.front.http.json_scan import Bounds
from serving.front.status import http_error
from serving.telemetry.events import UNKNOWN

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
HeaderList = list[tuple[bytes, bytes]]

_HOST = re.compile(r"[A-Za-z0-9.\-_]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?")
JSON_TYPE = b"application/json"
BODY_WANTED: Final = "vireo.body_wanted"
"""Key of the scope: an event to set before the body of a request is read that waits for leave to send it."""
KEEP_ALIVE: Final = b": keep-alive\n\n"
PLACES_HEADER: Final = b"x-vireo-places"
"""Requests that the caller may have at this gateway at a time. HAProxy keeps to it, and takes it off."""
EVENT_HEADERS: Final[HeaderList] = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
"""Of an answer that is a stream of server-sent events."""


@dataclass(slots=True)
class Call(BaseCall):
    """A request whose caller is known and whose body is not yet read."""

    scope: Scope
    receive: Receive
    send: Send
    headers: Headers
    reader: JsonReader
    adds_request_id: bool

    @property
    def path_params(self) -> dict[str, str]:
        """Parts of the path that its pattern names."""
        params: dict[str, str] = self.scope.get("path_params", {})
        return params

    def header(self, name: bytes) -> str | None:
        """Return a header. Raises: InvalidRequest: it is too long."""
        return header(self.headers, name, self.front.limits)

    def budget(self) -> Budget:
        """Return the budget of the headers. Raises: InvalidRequest."""
        return budget_from_headers(self.headers, self.front.limits)

    @property
    def content_type(self) -> str:
        """Type of the body, with its parameters."""
        return self.headers.get(b"content-type", b"").decode("latin-1")

    def url_of(self, path: str) -> str:
        """Return a path by the address that the caller used; as it is if that is not known."""
        host = self.headers.get(b"host", b"").decode("latin-1")
        if not _HOST.fullmatch(host):
            return path
        forwarded = self.headers.get(b"x-forwarded-proto", b"").decode("latin-1").strip().lower()
        return f"{forwarded if forwarded in ('http', 'https') else self.scope.get('scheme', 'http')}://{host}{path}"

    def media_type(self, *taken: str) -> str:
        """Return the type of the body without its parameters.

        Raises: UnsupportedMediaType: it is none of ``taken``.
        """
        kind = self.content_type.partition(";")[0].strip().lower()
        if kind not in taken:
            sent = shown(self.content_type) if self.content_type else "missing"
            wanted = " or ".join(one for one in taken if one)
            raise UnsupportedMediaType(f"content-type is {sent}; send {wanted}", param="content-type")
        return kind

    async def read_json(self, bounds: Bounds) -> dict[str, Any]:
        """Read a body that is one JSON object. Raises: ClientError."""
        return await self.reader.read(self.receive, self.headers, self.front.limits, bounds)

    @property
    def is_head(self) -> bool:
        """Whether the head of the answer is all that is wanted."""
        return bool(self.scope["method"] == "HEAD")

    def authenticate(self) -> None:
        """Find the tenant. Raises: Unauthenticated, Forbidden, InvalidRequest."""
        client, authenticator = self.scope.get("client"), self.front.authenticator
        self.visit.tenant = authenticator.authenticate(
            self.header(b"authorization"), self.header(b"x-api-key"), client[0] if client else None
        )
        authenticator.check_browser(self.header(b"host"), self.header(b"origin"))

    async def start(self, headers: HeaderList, status: int = 200) -> None:
        """Begin a successful answer that is sent piece by piece."""
        headers = [*headers, *self.told_haproxy()]
        if self.adds_request_id:
            headers.append((b"x-request-id", self.request_id.encode()))
        await self.send({"type": "http.response.start", "status": status, "headers": headers})

    def told_haproxy(self) -> HeaderList:
        """How many requests the caller may have here at a time, on every answer to work: ``system.haproxy_callers``."""
        if self.visit.surface is None or self.tenant == UNKNOWN:
            return []
        places = self.front.service.places(self.tenant)
        return [] if places is None else [(PLACES_HEADER, str(places).encode())]

    async def send_piece(self, data: bytes, *, is_last: bool = False) -> None:
        """Send a piece of an answer that was begun."""
        await self.send({"type": "http.response.body", "body": data, "more_body": not is_last})


@dataclass(frozen=True, slots=True)
class Answer:
    """What is sent back."""

    body: bytes
    status: int = 200
    content_type: bytes = JSON_TYPE
    headers: tuple[tuple[bytes, bytes], ...] = ()


Handler = Callable[[Call], Awaitable[Answer | None]]
"""None: the handler has sent the answer itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One path: what answers it, and how it is documented.

    ``operation``: the path's entry in the OpenAPI document; where a schema goes it has the class that is parsed or
    encoded. ``surface``: of an inference path. ``needs_key``: callers without a tenant are refused.
    """

    method: str
    path: str
    handler: Handler
    operation: Mapping[str, Any]
    surface: Surface | None = None
    needs_key: bool = True


def json_answer(document: Any) -> Answer:
    """Return a JSON answer."""
    return Answer(orjson.dumps(document))


class Endpoint:
    """An ASGI application for one path. It answers every request, whatever its handler raises."""

    def __init__(self, front: Front, reader: JsonReader, route: Route, *, adds_request_id: bool) -> None:
        self._front = front
        self._reader = reader
        self._route = route
        self._adds_request_id = adds_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        headers = headers_of(scope["headers"])
        accepted_id = request_id(headers.get(b"x-request-id", b"").decode("latin-1"))
        traceparent = headers.get(b"traceparent", b"").decode("latin-1")
        if (wanted := scope.get(BODY_WANTED)) is not None:
            receive = _after_leave(receive, wanted)
        visit = self._front.begin(self._route.surface, accepted_id, traceparent)
        call = Call(
            self._front, accepted_id, visit,
            scope, receive, send, headers, self._reader, self._adds_request_id,
        )  # fmt: skip
        try:
            check_repeated(scope["headers"], headers)
            if self._route.needs_key:
                call.authenticate()
            answer = await self._route.handler(call)
        except Exception as error:
            answer = error_answer(call.known(error), self._route.path)
        finally:
            self._front.end(visit)
        if answer is not None:
            answer = replace(answer, headers=(*answer.headers, *call.told_haproxy()))
            await send_answer(send, answer, call.request_id if self._adds_request_id else None)


def _after_leave(receive: Receive, wanted: asyncio.Event) -> Receive:
    async def receive_after_leave() -> MutableMapping[str, Any]:
        wanted.set()
        return await receive()

    return receive_after_leave


def error_answer(error: ServingError, path: str) -> Answer:
    """Return the answer of a failed request."""
    status, headers, body = http_error(error, path)
    return Answer(body, status, JSON_TYPE, tuple(headers))


async def send_answer(send: Send, answer: Answer, request_id: str | None) -> None:
    """Send an answer (ASGI)."""
    headers: HeaderList = list(answer.headers)
    if answer.status != 304:  # its headers are about what the caller has already, and that has another length
        headers[:0] = [(b"content-type", answer.content_type), (b"content-length", str(len(answer.body)).encode())]
    if request_id is not None:
        headers.append((b"x-request-id", request_id.encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
