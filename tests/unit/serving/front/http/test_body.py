"""Reading bodies: bounded in size and in time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from serving.errors import Cancelled, InvalidRequest, PayloadTooLarge, SlowBody, UnsupportedMediaType
from serving.front.http.body import PIECE_BYTES, Headers, Receive, read_into
from serving.limits import IngressLimits
from tests.support.waiting import turns

LIMITS = IngressLimits(max_body_bytes=10, body_timeout_s=0.05)


class Source:
    """An ASGI ``receive`` over chunks; counts how many were taken."""

    def __init__(self, *chunks: bytes, more_at_end: bool = False) -> None:
        self.chunks = list(chunks)
        self.taken = 0
        self.more_at_end = more_at_end

    async def __call__(self) -> dict[str, Any]:
        if self.taken == len(self.chunks):
            return {"type": "http.disconnect"}
        self.taken += 1
        more = self.more_at_end or self.taken < len(self.chunks)
        return {"type": "http.request", "body": self.chunks[self.taken - 1], "more_body": more}


async def read_body(receive: Receive, headers: Headers, limits: IngressLimits) -> bytes:
    pieces: list[bytes] = []
    await read_into(receive, headers, limits, pieces.append)
    return b"".join(pieces)


@pytest.mark.parametrize("chunks", [(b"",), (b"0123456789",), (b"01234", b"", b"56789"), (b"", b"")])
async def test_body_within_the_limit_is_returned_whole(chunks: tuple[bytes, ...]) -> None:
    assert await read_body(Source(*chunks), {}, LIMITS) == b"".join(chunks)


async def test_content_length_over_the_limit_is_refused_before_anything_is_read() -> None:
    source = Source(b"x")
    with pytest.raises(PayloadTooLarge, match="11 bytes; the limit is 10"):
        await read_body(source, {b"content-length": b"11"}, LIMITS)
    assert source.taken == 0


async def test_reading_stops_at_the_chunk_that_goes_over_the_limit_whatever_content_length_says() -> None:
    source = Source(b"01234567", b"89x", b"never read", b"never read")
    with pytest.raises(PayloadTooLarge):
        await read_body(source, {b"content-length": b"3"}, LIMITS)
    assert source.taken == 2


async def test_large_chunk_is_taken_in_pieces_and_others_have_their_turn_after_each() -> None:
    pieces: list[bytes] = []
    turns: list[int] = []

    async def other() -> None:
        while True:
            turns.append(len(pieces))
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    body = bytes(range(256)) * 2048
    await read_into(Source(body), {}, IngressLimits(), pieces.append)
    task.cancel()
    assert b"".join(pieces) == body
    assert max(map(len, pieces)) == PIECE_BYTES
    assert set(turns) >= set(range(1, len(pieces)))


@pytest.mark.parametrize("length", [b"-1", b"1e3", b"ten", b"", b" 5", b"\xb2", b"9" * 5000])
async def test_content_length_that_is_no_number_or_absurd_is_refused(length: bytes) -> None:
    with pytest.raises((InvalidRequest, PayloadTooLarge)):
        await read_body(Source(b"x"), {b"content-length": length}, LIMITS)


async def test_dripping_body_is_given_up_however_steadily_it_drips() -> None:
    async def drip() -> dict[str, Any]:
        await turns()
        return {"type": "http.request", "body": b"", "more_body": True}

    with pytest.raises(SlowBody, match=r"0\.05 s"):
        await read_body(drip, {}, LIMITS)


async def test_silent_client_is_given_up() -> None:
    async def silent() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(SlowBody):
        await read_body(silent, {}, LIMITS)


async def test_client_that_leaves_cancels() -> None:
    with pytest.raises(Cancelled, match="after 4 bytes"):
        await read_body(Source(b"0123", more_at_end=True), {}, LIMITS)


@pytest.mark.parametrize("encoding", [b"gzip", b"deflate", b"br", b"identity, gzip"])
async def test_compressed_body_is_refused_by_name(encoding: bytes) -> None:
    with pytest.raises(UnsupportedMediaType, match="uncompressed"):
        await read_body(Source(b"x"), {b"content-encoding": encoding}, LIMITS)


async def test_cancelling_the_task_is_not_taken_for_a_timeout() -> None:
    async def silent() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    task = asyncio.create_task(read_body(silent, {}, IngressLimits()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
