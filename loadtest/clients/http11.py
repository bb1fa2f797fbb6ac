"""HTTP/1.1 for load generation: one request in flight per connection, as little Python per request as possible.

Written instead of taken: the general clients spend two to nine times its processor time on a request, and on a small
machine that time is taken from the server under test (docs/loadtest.md, "The choice of client and timer"). It speaks
what a load test needs: keep-alive, Content-Length and chunked answers, TLS. It does not follow redirects, decompress,
pipeline, or retry: a request that fails on a kept-alive connection is a failure, because a retry would hide the death
of a server.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from urllib.parse import urlsplit

_MAX_HEAD_BYTES = 65_536
_MAX_BODY_BYTES = 256 * 2**20


class ConnectionFailed(Exception):
    """The connection could not be made, or ended before the answer was whole."""


class BadResponse(Exception):
    """Bytes that are no HTTP/1.1 answer, or one beyond the limits of this client."""


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A whole answer. Header names are lower case; a repeated header keeps its last value."""

    status: int
    headers: dict[str, str]
    body: bytes
    first_byte_at_s: float
    """When the first byte of the body arrived, or the end of the head if there is no body."""
    done_at_s: float
    arrivals: tuple[tuple[int, float], ...] = ()
    """How many bytes of the body were there, and when: one entry for each time that more came."""

    def arrived_at_s(self, end: int) -> float:
        """When the first ``end`` bytes of the body were there."""
        index = bisect_left(self.arrivals, end, key=itemgetter(0))
        return self.arrivals[index][1] if index < len(self.arrivals) else self.done_at_s


class ResponseParser:
    """Bytes in, one ``HttpResponse`` out. Pure; the caller tells it the time."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._status = 0
        self._headers: dict[str, str] = {}
        self._first_byte_at_s: float | None = None
        self._read_body: Callable[[float], HttpResponse | None] | None = None
        self._length = 0
        self._body = bytearray()
        self._arrivals: list[tuple[int, float]] = []

    def feed(self, data: bytes, now_s: float) -> HttpResponse | None:
        """Take bytes that arrived at ``now_s``; the answer if it is whole now.

        Raises: BadResponse: if the bytes are no answer.
        """
        self._buffer += data
        while self._read_body is None:
            if not self._read_head(now_s):
                return None
        return self._read_body(now_s)

    def end(self, now_s: float) -> HttpResponse | None:
        """The peer closed: the answer, if closing was how its end is marked, else ``None``."""
        if self._read_body == self._read_until_close:
            return self._finish(bytes(self._buffer), now_s)
        return None

    def _read_head(self, now_s: float) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _MAX_HEAD_BYTES:
                raise BadResponse(f"the head of the answer is longer than {_MAX_HEAD_BYTES} bytes")
            return False
        self._parse_head(bytes(self._buffer[:end]).decode("latin-1").split("\r\n"))
        del self._buffer[: end + 4]
        if self._status >= 200:  # 1xx answers come before the real one
            self._read_body = self._choose_body_reader()
        return True

    def _parse_head(self, lines: list[str]) -> None:
        version, _, rest = lines[0].partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
            raise BadResponse(f"not a status line: {lines[0][:80]!r}")
        self._status = int(rest[:3])
        self._headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            self._headers[name.lower()] = value.strip()

    def _choose_body_reader(self) -> Callable[[float], HttpResponse | None]:
        if self._status in (204, 304):
            self._headers["content-length"] = "0"
        elif "chunked" in self._headers.get("transfer-encoding", "").lower():
            return self._read_chunks
        length = self._headers.get("content-length")
        if length is None:
            return self._read_until_close
        if not length.isdigit() or int(length) > _MAX_BODY_BYTES:
            raise BadResponse(f"content-length is {length!r}; the limit is {_MAX_BODY_BYTES}")
        self._length = int(length)
        return self._read_length

    def _read_length(self, now_s: float) -> HttpResponse | None:
        self._mark_first_byte(len(self._buffer) > 0, now_s)
        if len(self._buffer) < self._length:
            return None
        if len(self._buffer) > self._length:
            raise BadResponse(f"{len(self._buffer) - self._length} bytes follow the answer")
        return self._finish(bytes(self._buffer), now_s)

    def _read_until_close(self, now_s: float) -> HttpResponse | None:
        self._mark_first_byte(len(self._buffer) > 0, now_s)
        self._check_body_size(len(self._buffer))
        return None

    def _read_chunks(self, now_s: float) -> HttpResponse | None:
        num_before = len(self._body)
        try:
            return self._take_chunks(now_s)
        finally:
            if len(self._body) > num_before:
                self._arrivals.append((len(self._body), now_s))

    def _take_chunks(self, now_s: float) -> HttpResponse | None:
        while (end := self._buffer.find(b"\r\n")) >= 0:
            size = self._chunk_size(end)
            if size == 0:
                return self._finish(bytes(self._body), now_s) if self._trailers_are_whole(end) else None
            self._mark_first_byte(len(self._buffer) > end + 2, now_s)
            if len(self._buffer) < end + 2 + size + 2:
                return None
            self._body += self._buffer[end + 2 : end + 2 + size]
            self._check_body_size(len(self._body))
            del self._buffer[: end + 2 + size + 2]
        return None

    def _chunk_size(self, end: int) -> int:
        text = bytes(self._buffer[:end]).split(b";", 1)[0].strip()
        try:
            size = int(text, 16)
        except ValueError:
            raise BadResponse(f"not a chunk size: {text[:80]!r}") from None
        self._check_body_size(size)
        return size

    def _trailers_are_whole(self, end: int) -> bool:
        return self._buffer.find(b"\r\n\r\n", end) >= 0

    def _mark_first_byte(self, has_body: bool, now_s: float) -> None:
        if has_body and self._first_byte_at_s is None:
            self._first_byte_at_s = now_s

    def _check_body_size(self, num_bytes: int) -> None:
        if not 0 <= num_bytes <= _MAX_BODY_BYTES:
            raise BadResponse(f"a body of {num_bytes} bytes; the limit is {_MAX_BODY_BYTES}")

    def _finish(self, body: bytes, now_s: float) -> HttpResponse:
        first = now_s if self._first_byte_at_s is None else self._first_byte_at_s
        arrivals = (*self._arrivals, (len(body), now_s))
        return HttpResponse(self._status, self._headers, body, first, now_s, arrivals)


class _Connection(asyncio.Protocol):
    """One connection, one exchange at a time."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[HttpResponse] | None = None
        self._parser = ResponseParser()
        self.is_open = False
        self.idle_since_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        now_s = self._now_s()
        if self._waiter is None or self._waiter.done():
            self.close()  # bytes that nobody asked for
            return
        try:
            response = self._parser.feed(data, now_s)
        except BadResponse as error:
            self._fail(error)
            return
        if response is not None:
            self._waiter.set_result(response)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self._waiter is None or self._waiter.done():
            return
        response = self._parser.end(self._now_s()) if exc is None else None
        if response is not None:
            self._waiter.set_result(response)
        else:
            self._waiter.set_exception(ConnectionFailed(str(exc) if exc else "the server closed the connection"))

    async def exchange(self, request: bytes) -> HttpResponse:
        assert self._transport is not None
        self._parser = ResponseParser()
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._waiter

    def close(self) -> None:
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    def _fail(self, error: Exception) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)
        self.close()


class HttpPool:
    """Connections to one server, opened when they are needed and kept while they are fresh.

    There is no limit on their number: the runner's ``max_in_flight`` is the limit. ``max_idle_s`` is below the
    keep-alive time of the usual servers, so that a request is not sent into a connection that is just being closed.
    """

    def __init__(self, base_url: str, *, max_idle_s: float = 2.0, now_s: Callable[[], float] = time.monotonic) -> None:
        url = urlsplit(base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(f"the target is {base_url!r}; it must look like http://HOST:PORT")
        self._host = url.hostname
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if url.scheme == "https" else None
        self.host_header = url.netloc.rpartition("@")[2]
        self.prefix = url.path.rstrip("/")
        self._max_idle_s = max_idle_s
        self._now_s = now_s
        self._idle: list[_Connection] = []
        self._all: set[_Connection] = set()

    async def connect(self) -> None:
        """Open one connection ahead of the first request. Raises: ConnectionFailed."""
        connection = await self._connect()
        connection.idle_since_s = self._now_s()
        self._idle.append(connection)

    async def exchange(self, request: bytes) -> HttpResponse:
        """Send one whole request, wait for its whole answer.

        Raises: ConnectionFailed, BadResponse. Cancelling closes the connection.
        """
        connection = self._take_idle() or await self._connect()
        try:
            response = await connection.exchange(request)
        except BaseException:
            self._drop(connection)
            raise
        self._give_back(connection, response)
        return response

    async def close(self) -> None:
        """Close every connection."""
        for connection in list(self._all):
            self._drop(connection)
        self._idle.clear()
        await asyncio.sleep(0)  # lets the loop run the connection_lost callbacks

    def _take_idle(self) -> _Connection | None:
        oldest_s = self._now_s() - self._max_idle_s
        while self._idle:
            connection = self._idle.pop()  # the last used first: the others may grow too old and go
            if connection.is_open and connection.idle_since_s >= oldest_s:
                return connection
            self._drop(connection)
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(
                lambda: _Connection(self._now_s), self._host, self._port, ssl=self._tls
            )
        except OSError as error:
            raise ConnectionFailed(str(error)) from error
        self._all.add(connection)
        return connection

    def _give_back(self, connection: _Connection, response: HttpResponse) -> None:
        if connection.is_open and response.headers.get("connection", "").lower() != "close":
            connection.idle_since_s = self._now_s()
            self._idle.append(connection)
        else:
            self._drop(connection)

    def _drop(self, connection: _Connection) -> None:
        self._all.discard(connection)
        connection.close()


def encode_request(
    pool: HttpPool, method: str, path: str, *, body: bytes = b"", headers: dict[str, str] | None = None
) -> bytes:
    """A whole HTTP/1.1 request. Raises: ValueError: if a header value holds a line break."""
    lines = [f"{method} {pool.prefix}{path} HTTP/1.1", f"host: {pool.host_header}", f"content-length: {len(body)}"]
    for name, value in (headers or {}).items():
        if "\r" in value or "\n" in value:
            raise ValueError(f"header {name} holds a line break")
        lines.append(f"{name}: {value}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body
