"""Bidirectional streams: bounded, out of order, nothing left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from serving.front.grpc.stream import answer_stream
from tests.support.clients import stream_of

ROOMY = 1 << 20


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_answers_come_as_they_are_ready_each_once() -> None:
    gates = {number: asyncio.Event() for number in range(4)}

    async def answer(request: bytes) -> int:
        await gates[request[0]].wait()
        return request[0]

    got: list[int] = []

    async def read() -> None:
        async for number in answer_stream(
            stream_of([bytes([number]) for number in range(4)]), answer, limit=10, max_bytes=ROOMY
        ):
            got.append(number)  # noqa: PERF401 (the test watches it grow)

    task = asyncio.create_task(read())
    for number in (2, 0, 3, 1):
        gates[number].set()
        await settle()
    await task
    assert got == [2, 0, 3, 1]


@pytest.mark.parametrize("limit", [1, 3])
async def test_reading_pauses_at_the_limit_of_unanswered_requests(limit: int) -> None:
    taken = in_flight = most = 0
    go_on = asyncio.Event()

    async def requests() -> AsyncIterator[bytes]:
        nonlocal taken
        for number in range(8):
            taken += 1
            yield bytes([number])

    async def answer(request: bytes) -> int:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        await go_on.wait()
        in_flight -= 1
        return request[0]

    stream = answer_stream(requests(), answer, limit, max_bytes=ROOMY)
    first = asyncio.ensure_future(anext(stream))
    await settle()
    assert taken == limit
    go_on.set()
    got = {await first} | {number async for number in stream}
    assert got == set(range(8))
    assert most == limit


async def test_reading_pauses_while_unanswered_requests_have_too_many_bytes() -> None:
    taken = 0

    async def requests() -> AsyncIterator[bytes]:
        nonlocal taken
        for number in range(8):
            taken += 1
            yield bytes([number]) * 40

    async def answer(request: bytes) -> int:
        return request[0]

    stream = answer_stream(requests(), answer, limit=100, max_bytes=100)
    got = [await anext(stream)]
    await settle()
    assert taken == 3
    got += [number async for number in stream]
    assert sorted(got) == list(range(8))


async def test_one_answer_taken_makes_room_for_one_request() -> None:
    taken = 0

    async def requests() -> AsyncIterator[bytes]:
        nonlocal taken
        for number in range(20):
            taken += 1
            yield bytes([number])

    async def answer(request: bytes) -> int:
        return request[0]

    stream = answer_stream(requests(), answer, limit=3, max_bytes=ROOMY)
    for answers_taken in range(1, 10):
        await anext(stream)
        await settle()
        assert taken == 3 + answers_taken - 1, "the answer that the client is looking at still counts"
    await stream.aclose()


async def test_client_that_does_not_read_stops_us_from_reading() -> None:
    taken = 0

    async def requests() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield bytes([taken])

    async def answer(request: bytes) -> int:
        return request[0]

    stream = answer_stream(requests(), answer, limit=4, max_bytes=ROOMY)
    await anext(stream)
    await settle()
    assert taken == 4
    await stream.aclose()


async def hang(_: Any) -> int:
    await asyncio.Event().wait()
    raise AssertionError


async def test_closing_the_stream_cancels_what_is_in_flight() -> None:
    before = asyncio.all_tasks()
    stream = answer_stream(stream_of([bytes([number]) for number in range(5)]), hang, limit=10, max_bytes=ROOMY)
    pending = asyncio.ensure_future(anext(stream))
    await settle()
    assert len(asyncio.all_tasks() - before) > 5
    pending.cancel()
    await asyncio.gather(pending, return_exceptions=True)
    await stream.aclose()
    assert asyncio.all_tasks() == before


async def test_client_that_has_gone_is_not_waited_for() -> None:
    class Gone:
        def __init__(self) -> None:
            self.inner = stream_of([bytes([number]) for number in range(3)])

        def __aiter__(self) -> AsyncIterator[bytes]:
            return self.inner

        def is_cancelled(self) -> bool:
            return True

    async with asyncio.timeout(5):
        assert [item async for item in answer_stream(Gone(), hang, limit=10, max_bytes=ROOMY)] == []


async def test_stream_whose_reading_fails_ends() -> None:
    async def requests() -> AsyncIterator[bytes]:
        yield bytes([1])
        raise ConnectionError

    async def answer(request: bytes) -> int:
        return request[0]

    async with asyncio.timeout(5):
        got = [item async for item in answer_stream(requests(), answer, limit=10, max_bytes=ROOMY)]
    assert got in ([], [1])


async def test_empty_stream_ends_without_an_answer() -> None:
    assert [item async for item in answer_stream(stream_of([]), hang, limit=1, max_bytes=ROOMY)] == []
