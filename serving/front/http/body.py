"""Reads a request body while counting: nothing beyond the limit is ever held, and nobody is waited for without end."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any, Final

from serving.errors import Cancelled, InvalidRequest, PayloadTooLarge, SlowBody, UnsupportedMediaType
from serving.front.auth import key_sent_twice
from serving.front.front import shown
from serving.limits import IngressLimits

PIECE_BYTES: Final = 1 << 16
"""Small enough for every ``sink`` to be done within milliseconds."""

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Headers = Mapping[bytes, bytes]
"""Lower-case names to values, as ASGI gives them."""


_KEYS: Final = {b"authorization", b"x-api-key"}
_SINGLE: Final = {b"content-type", b"content-length", b"content-encoding", b"host", b"idempotency-key", b"range",
                  b"inference-header-content-length"}  # fmt: skip


def headers_of(pairs: Sequence[tuple[bytes, bytes]]) -> Headers:
    """Return the headers of a request, those that came more than once joined, as RFC 9110 has it for lists: an id that
    came twice is then malformed. ``check_repeated`` is about those that are no lists."""
    headers = dict(pairs)
    if len(headers) == len(pairs):
        return headers
    joined: dict[bytes, bytes] = {}
    for name, value in pairs:
        joined[name] = joined[name] + b", " + value if name in joined else value
    return joined


def check_repeated(pairs: Sequence[tuple[bytes, bytes]], headers: Headers) -> None:
    """Raises: Unauthenticated, InvalidRequest: a header that has one value came more than once."""
    if len(headers) == len(pairs):
        return
    for name, count in Counter(name for name, _value in pairs).items():
        shown_name = name.decode("latin-1")
        if count > 1 and name in _KEYS:
            raise key_sent_twice(shown_name)
        if count > 1 and (name in _SINGLE or name.startswith(b"x-vireo-")):
            raise InvalidRequest(f"{shown_name} is sent more than once; send it once", param=shown_name)


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
