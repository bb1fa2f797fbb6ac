"""One GET over one TLS connection to one address, read under caps. No redirects, cookies, proxies, or second requests.

h11 parses; nothing between the socket and this file keeps connections, follows anything or unpacks bodies.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

import h11

from serving.errors import ImageFetchFailed, ImageTooLarge, UnsupportedMediaType
from serving.media.urls import Target

Streams: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connector: TypeAlias = Callable[[str, int, str, ssl.SSLContext], Awaitable[Streams]]
"""(address, port, name that the certificate must have, TLS settings) to a connection. Raises OSError."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MEDIA_TYPES = frozenset({b"image/jpeg", b"image/png", b"image/webp", b"application/octet-stream"})
_READ_BYTES = 64 << 10
_MAX_INTERIM = 4
_Event: TypeAlias = "h11.Event | type[h11.PAUSED]"


@dataclass(frozen=True, slots=True)
class Redirect:
    """The host named another place."""

    location: bytes


async def connect_tls(address: str, port: int, server_name: str, context: ssl.SSLContext) -> Streams:
    """Connect to exactly this address. ``server_name`` is sent as SNI and must be in the certificate."""
    return await asyncio.open_connection(
        address, port, ssl=context, server_hostname=server_name, flags=socket.AI_NUMERICHOST
    )


def default_tls() -> ssl.SSLContext:
    """The system's certificate authorities, names checked, HTTP/1.1 only."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


async def get(
    streams: Streams, target: Target, max_header_bytes: int, max_body_bytes: int, charge: Callable[[int], None]
) -> bytes | Redirect:
    """Ask for ``target`` and read the answer; the connection is closed in any case.

    ``charge`` is called with the length of every piece of the body before it is kept, and may raise.

    Raises:
        ImageFetchFailed: no proper answer, not 200, or an encoded body.
        UnsupportedMediaType: not declared as an image.
        ImageTooLarge: over ``max_body_bytes``, by its declared length or while it is read.
        OSError: the connection broke.
    """
    exchange = _Exchange(streams, max_header_bytes)
    try:
        response = await exchange.ask(target)
        if response.status_code in _REDIRECTS:
            return Redirect(_only(response, b"location") or b"")
        _check_response(response, max_body_bytes)
        return await exchange.read_body(max_body_bytes, charge)
    except (h11.ProtocolError, EOFError):
        raise ImageFetchFailed("the host of the image URL did not answer in proper HTTP. " + REMEDY) from None
    finally:
        await exchange.close()


REMEDY = "Check the URL, or send the image as a data: URL"


class _Exchange:
    """A connection and its parser."""

    def __init__(self, streams: Streams, max_header_bytes: int) -> None:
        self._reader, self._writer = streams
        self._max_header_bytes = max_header_bytes
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=max_header_bytes)

    async def ask(self, target: Target) -> h11.Response:
        request = h11.Request(
            method="GET",
            target=target.path,
            headers=[
                ("Host", target.authority),
                ("User-Agent", "vireo"),
                ("Accept", "image/jpeg, image/png, image/webp"),
                ("Accept-Encoding", "identity"),
                ("Connection", "close"),
            ],
        )
        self._writer.write((self._http.send(request) or b"") + (self._http.send(h11.EndOfMessage()) or b""))
        await self._writer.drain()
        for _ in range(_MAX_INTERIM):
            event = await self._next()
            if isinstance(event, h11.Response):
                self._check_header(event)
                return event
            if not isinstance(event, h11.InformationalResponse):
                raise EOFError
        raise EOFError

    def _check_header(self, response: h11.Response) -> None:
        """The parser bounds a header that is incomplete; one that came whole is measured here."""
        if sum(len(name) + len(value) for name, value in response.headers) > self._max_header_bytes:
            raise EOFError

    async def read_body(self, max_bytes: int, charge: Callable[[int], None]) -> bytes:
        body = bytearray()
        while not isinstance(event := await self._next(), h11.EndOfMessage):
            if not isinstance(event, h11.Data):
                raise EOFError
            if len(body) + len(event.data) > max_bytes:
                raise _too_large(max_bytes)
            charge(len(event.data))
            body += event.data
        return bytes(body)

    async def _next(self) -> _Event:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._reader.read(_READ_BYTES))
        return event  # type: ignore[return-value]  # NEED_DATA is excluded above, which its stubs do not say

    async def close(self) -> None:
        """Drop the connection without waiting for the other side's goodbye."""
        self._writer.transport.abort()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


def _check_response(response: h11.Response, max_body_bytes: int) -> None:
    if response.status_code != 200:
        raise ImageFetchFailed(f"the host of the image URL answered with status {response.status_code}. {REMEDY}")
    encoding = _only(response, b"content-encoding")
    if encoding is not None and encoding.lower() != b"identity":
        raise ImageFetchFailed("the host of the image URL sent a compressed body, which it was asked not to. " + REMEDY)
    media_type = _only(response, b"content-type")
    if media_type is not None and media_type.partition(b";")[0].strip().lower() not in _MEDIA_TYPES:
        raise UnsupportedMediaType("what the image URL leads to is not declared as image/jpeg, image/png or image/webp")
    declared = _only(response, b"content-length")
    if declared is not None and int(declared) > max_body_bytes:
        raise _too_large(max_body_bytes)


def _only(response: h11.Response, name: bytes) -> bytes | None:
    """The value of a header that may be there once."""
    values = [value for key, value in response.headers if key == name]
    if len(values) > 1:
        raise EOFError
    return values[0] if values else None


def _too_large(max_bytes: int) -> ImageTooLarge:
    return ImageTooLarge(
        f"what the image URL leads to has more than {max_bytes} bytes, the limit. Link to a smaller file"
    )
