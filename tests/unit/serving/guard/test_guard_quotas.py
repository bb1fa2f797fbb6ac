"""Fill-and-squeeze (2602.07878): a tenant fills the KV cache with pages and squeezes short chats between. Answers are
preempted nowhere by construction: what is on an engine has room for its longest end, whoever sends what."""

from __future__ import annotations

import asyncio
import random

import pytest

from serving.delivery.stream.links import ChatLinks, Route
from serving.delivery.stream.wire import ChoiceStart, Delta, EngineRequest, Failure
from serving.errors import TooManyBytes
from serving.replica.chat.base import Say
from serving.replica.chat.fake_engine import FakeChatEngine
from tests.support.chat_replicas import LocalCalls, Mailbox, Replica, engine_request
from tests.support.virtual_loop import run_virtual

NUM_BLOCKS = 128
KV_BYTES = 16 * NUM_BLOCKS
"""The fake engine counts a byte for each token."""


class Watched(FakeChatEngine):
    """Notes what its choices could come to hold together, whenever one begins."""

    def __init__(self) -> None:
        super().__init__(answer=lambda request: "word" * request.max_tokens, step_s=0.01, num_blocks=NUM_BLOCKS)
        self.most_held: list[int] = []
        self._could_hold = 0

    async def run(self, request: EngineRequest, say: Say) -> None:
        self._could_hold += self.held_bytes(request)
        self.most_held.append(self._could_hold)
        try:
            await super().run(request, say)
        finally:
            self._could_hold -= self.held_bytes(request)


def page(rng: random.Random) -> EngineRequest:
    """Fills half of the cache or more."""
    return engine_request("p" * rng.randint(200, 700), max_tokens=rng.randint(400, 1000))


def squeeze(rng: random.Random) -> EngineRequest:
    return engine_request("s" * rng.randint(1, 40), max_tokens=rng.randint(1, 40))


async def outcomes(mailbox: Mailbox, longest_s: float) -> list[Delta | Failure]:
    """The end of each choice. Raises: TimeoutError: it has waited for longer."""
    ends: list[Delta | Failure] = []
    async with asyncio.timeout(longest_s):
        while mailbox.open_ids:
            items = await mailbox.next()
            ends += [one for one in items if isinstance(one, Failure) or one.finish_reason is not None]
    mailbox.close(lambda _: None)
    return ends


@pytest.mark.parametrize("seed", range(5))
def test_what_is_on_the_engine_always_has_room_for_its_longest_end(seed: int) -> None:
    async def attack() -> None:
        rng, engine = random.Random(seed), Watched()
        replica = Replica("r", engine, max_running=16, max_waiting=256)
        links = ChatLinks(LocalCalls(replica), "g")

        def ask(tenant: str, request: EngineRequest) -> asyncio.Task[list[Delta | Failure]]:
            start = ChoiceStart(0, request, 1e6, 1.0, True, tenant, 0)
            return asyncio.get_running_loop().create_task(outcomes(Mailbox(links, [start], Route()), 1e6))

        hostile = [ask("hostile", page(rng)) for _ in range(10)]
        for _ in range(30):
            hostile.append(ask("hostile", squeeze(rng)))
            honest = await ask("honest", squeeze(rng))
            assert isinstance(honest[0], Delta), honest
        ends = [end for one in await asyncio.gather(*hostile) for end in one]
        assert all(isinstance(end, Delta) for end in ends), "refused is nobody here, and everybody is answered"
        assert len(engine.most_held) == 70
        assert max(engine.most_held) <= KV_BYTES
        assert max(engine.most_held) > 0.8 * KV_BYTES, "it was full"
        assert engine.stats().preemptions == 0

    run_virtual(attack())


def test_quota_in_bytes_keeps_room_for_others_however_many_pages_come() -> None:
    """With half of the cache at most, its pages wait for each other, and nobody else for them."""

    async def attack() -> None:
        rng, engine = random.Random(1), Watched()
        replica = Replica("r", engine, max_running=16, max_waiting=256, max_kv_bytes={"hostile": KV_BYTES // 2})
        links = ChatLinks(LocalCalls(replica), "g")

        def ask(tenant: str, request: EngineRequest) -> asyncio.Task[list[Delta | Failure]]:
            start = ChoiceStart(0, request, 1e6, 1.0, True, tenant, 0)
            return asyncio.get_running_loop().create_task(outcomes(Mailbox(links, [start], Route()), 1e6))

        fill = engine_request("p" * 400, max_tokens=500)
        pages = [ask("hostile", fill) for _ in range(6)]
        loop = asyncio.get_running_loop()
        for _ in range(20):
            began_s, request = loop.time(), squeeze(rng)
            await ask("honest", request)
            assert loop.time() - began_s < 0.02 * (request.max_tokens + 3), "as if it were alone"
        ends = [end for one in await asyncio.gather(*pages) for end in one]
        refused = [end.error for end in ends if isinstance(end, Failure)]
        assert len(refused) == 5
        assert all(isinstance(error, TooManyBytes) for error in refused)

    run_virtual(attack())
