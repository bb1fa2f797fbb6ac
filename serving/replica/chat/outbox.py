"""What waits to be sent to one gateway: the first token and the end of a choice at once, the rest in messages."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from serving.delivery.stream.wire import Delta, Item

Choice = TypeVar("Choice")


@dataclass(eq=False, slots=True)
class Outbox(Generic[Choice]):
    """Of one gateway. ``session``: the call that carries what is sent, None if there is none. ``choices``: those of the
    gateway that have not ended, by number."""

    session: int | None = None
    items: list[Item] = field(default_factory=list)
    choices: dict[int, Choice] = field(default_factory=dict)
    is_urgent: bool = False
    """Whether a first token or an end waits."""
    is_holding: bool = False
    """Whether the stream waits for its time, and nothing but something urgent need wake it."""
    wake: asyncio.Future[None] | None = None
    sent_s: float = float("-inf")

    def put(self, item: Item, *, is_urgent: bool) -> None:
        """Send it with the next message; at once if it is urgent."""
        self.items.append(item)
        self.is_urgent |= is_urgent
        if self.wake is not None and not self.wake.done() and (is_urgent or not self.is_holding):
            self.wake.set_result(None)

    async def take(self, linger_s: float, interval_s: float) -> list[Item] | None:
        """All that waits; None after ``linger_s`` without choices and without anything to say."""
        while not self.items:
            await self._woken(linger_s)
            if not self.items and not self.choices:
                return None
        loop = asyncio.get_running_loop()
        early_s = self.sent_s + interval_s - loop.time()
        if early_s > 0 and not self.is_urgent:
            self.is_holding = True
            await self._woken(early_s)
            self.is_holding = False
        self.sent_s, self.is_urgent = loop.time(), False
        taken, self.items = self.items, []
        return _joined_by_choice(taken)

    async def _woken(self, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        self.wake = loop.create_future()
        timer = loop.call_later(timeout_s, _wake, self.wake)
        try:
            await self.wake
        finally:
            timer.cancel()


def _joined_by_choice(items: list[Item]) -> list[Item]:
    """One delta per choice; a failure stays behind what was said before it."""
    joined: list[Item] = []
    places: dict[int, int] = {}
    for item in items:
        place = places.setdefault(item.id, len(joined))
        if place == len(joined) or not isinstance(item, Delta):
            joined.append(item)
            continue
        before = joined[place]
        assert isinstance(before, Delta), "nothing follows a failure"
        joined[place] = item._replace(
            text=before.text + item.text,
            num_tokens=before.num_tokens + item.num_tokens,
            logprobs=before.logprobs + item.logprobs,
        )
    return joined


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
