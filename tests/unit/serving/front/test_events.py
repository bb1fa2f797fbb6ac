"""What waits between a service and its client: joined, in order, and closed whoever leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.delivery.stream.wire import ChatDelta, FinishReason, TokenLogprob
from serving.errors import BackendError, EngineFailed
from serving.front.events import EventQueue, pumped
from serving.tasks.chat.domain import ChatEnd, ChatEvent, Usage, joined
from tests.support.fake_service import make_report

END = ChatEnd(usage=Usage(prompt_tokens=1, completion_tokens=1), report=make_report())


def texts(events: Iterable[ChatEvent]) -> dict[int, str]:
    found: dict[int, str] = {}
    for event in events:
        if isinstance(event, ChatDelta):
            found[event.index] = found.get(event.index, "") + event.text
    return found


@given(st.lists(st.builds(ChatDelta, st.integers(0, 3), st.text(max_size=3), st.integers(0, 3)), max_size=20))
def test_joining_keeps_the_text_and_the_count_of_each_choice(deltas: list[ChatDelta]) -> None:
    events: list[ChatEvent] = [*deltas, END]
    result = joined(events)
    assert result[-1] is END
    assert texts(result) == texts(events)
    assert len(result) == len({delta.index for delta in deltas}) + 1
    assert sum(event.num_tokens for event in result if isinstance(event, ChatDelta)) == sum(
        delta.num_tokens for delta in deltas
    )


def test_joining_keeps_the_reason_and_the_probabilities() -> None:
    first, second = TokenLogprob("a", -1.0), TokenLogprob("b", -2.0)
    run = [ChatDelta(0, "a", 1, None, (first,)), ChatDelta(0, "b", 1, FinishReason.LENGTH, (second,))]
    assert joined([*run]) == [ChatDelta(0, "ab", 2, FinishReason.LENGTH, (first, second))]


def test_lone_event_is_not_touched() -> None:
    events: list[ChatEvent] = [ChatDelta(0, "a", 1)]
    assert joined(events) is events
    assert joined([]) == []


class Source:
    """A generator that knows whether it was closed."""

    def __init__(self, *events: ChatEvent | BaseException | asyncio.Event) -> None:
        self.events = events
        self.is_open = False

    async def run(self) -> AsyncGenerator[ChatEvent, None]:
        self.is_open = True
        try:
            for event in self.events:
                if isinstance(event, BaseException):
                    raise event
                if isinstance(event, asyncio.Event):
                    await event.wait()
                else:
                    yield event
        finally:
            self.is_open = False


A, B = ChatDelta(0, "a", 1), ChatDelta(0, "b", 1)


async def test_events_come_before_the_error_that_followed_them() -> None:
    async with EventQueue(pumped(Source(A, B, EngineFailed("the engine has died")).run())) as queue:
        assert await queue.take() == [A, B]
        with pytest.raises(EngineFailed):
            await queue.take()


async def test_generator_that_just_ends_is_an_error() -> None:
    async with EventQueue(pumped(Source(A).run())) as queue:
        assert await queue.take() == [A]
        with pytest.raises(BackendError, match="broke off"):
            await queue.take()


async def test_generator_that_was_cancelled_from_within_is_an_error() -> None:
    async with EventQueue(pumped(Source(A, asyncio.CancelledError()).run())) as queue:
        assert await queue.take() == [A]
        with pytest.raises(BackendError, match="cancelled by the server"):
            await queue.take()


async def test_leaving_closes_a_generator_that_waits() -> None:
    source = Source(A, asyncio.Event(), END)
    async with EventQueue(pumped(source.run())) as queue:
        assert await queue.take() == [A]
        assert source.is_open
    assert not source.is_open


async def test_taker_that_is_cancelled_closes_the_generator() -> None:
    source = Source(asyncio.Event(), END)

    async def take() -> None:
        async with EventQueue(pumped(source.run())) as queue:
            await queue.take()

    task = asyncio.create_task(take())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert source.is_open
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not source.is_open


async def test_silence_is_told_again_and_again_and_not_while_something_waits() -> None:
    gate = asyncio.Event()
    async with EventQueue(pumped(Source(gate, END).run()), silence_s=0.005) as queue:
        assert await queue.take() == []
        assert await queue.take() == []
        gate.set()
        taken: list[ChatEvent] = []
        while not taken:
            taken = await queue.take()
        assert taken == [END]
