"""Reads a request body while counting: nothing beyond the limit is ever held, and nobody is waited for without end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final

from serving.errors import Cancelled, InvalidRequest, PayloadTooLarge, SlowBody, UnsupportedMediaType
from serving.front.front import shown
from serving.limits import IngressLimits

PIECE_BYTES: Final = 1 << 16
"""Small enough for every ``sink`` to be done within milliseconds."""

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Headers = Mapping[bytes, bytes]
"""Lower-case names to values, as ASGI gives them."""


def header(headers: Headers, name: bytes, limits: IngressLimits) -> str | None:
    """Return one header that Vireo reads.

    Raises: InvalidRequest: longer than the limit.
    """
    value = headers.get(name)
    if value is None:
        return None
    if len(value) > limits.max_header_value_bytes:
        raise InvalidRequest(
            f"header {name.decode('latin-1')} has {len(value)} bytes; the limit is {limits.max_header_value_bytes}",
            param=name.decode("latin-1"),
        )
    return value.decode("latin-1")


async def read_into(receive: Receive, headers: Headers, limits: IngressLimits, sink: Callable[[bytes], object]) -> None:
    """Give the body to ``sink`` as it arrives, a piece at a time; others get a turn after each.

    Raises:
        PayloadTooLarge: by its Content-Length, before anything is read, or as soon as one byte too many arrives.
        SlowBody: it was not complete after ``body_timeout_s``, however steadily it dripped.
        Cancelled: the client went away.
        UnsupportedMediaType: the body is compressed.
        InvalidRequest: Content-Length is no number.
        Whatever ``sink`` raises.
    """
    _check_headers(headers, limits)
    num_bytes, more = 0, True
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Cancelled(f"the client went away after {num_bytes} bytes of the body")
                chunk: bytes = message.get("body", b"")
                more = message.get("more_body", False)
                num_bytes += len(chunk)
                if num_bytes > limits.max_body_bytes:
                    raise _too_large(f"more than {limits.max_body_bytes}", limits)
                for start in range(0, len(chunk), PIECE_BYTES):
                    sink(chunk[start : start + PIECE_BYTES])
                    if more or start + PIECE_BYTES < len(chunk):
                        await asyncio.sleep(0)
    except TimeoutError:
        raise SlowBody(
            f"only {num_bytes} bytes of the body arrived in {limits.body_timeout_s:g} s, the limit; "
            "send it faster, or less"
        ) from None


def _check_headers(headers: Headers, limits: IngressLimits) -> None:
    encoding = headers.get(b"content-encoding", b"identity").strip().lower()
    if encoding not in (b"identity", b""):
        raise UnsupportedMediaType(
            f"content-encoding {shown(encoding.decode('latin-1'))} is not taken; send the body uncompressed",
            param="content-encoding",
        )
    length = headers.get(b"content-length")
    if length is None:
        return
    if not length.isdigit():
        raise InvalidRequest("content-length is not a decimal number; correct it", param="content-length")
    if len(length) > 18 or int(length) > limits.max_body_bytes:
        raise _too_large(length[:24].decode(), limits)


def _too_large(size: str, limits: IngressLimits) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the body has {size} bytes; the limit is {limits.max_body_bytes}. Split the request or send smaller images"
    )
