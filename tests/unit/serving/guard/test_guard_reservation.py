"""What guarded chats are charged, and for how long they go on, from the gateway to the engine: some thousands of them,
several at a time, with engines that fail, towers that fail, clients that leave, deadlines, and second looks.

Prices are those of the fake engine and stay so. Where it does one thing at a time, and one chat is there, all that was
done is charged; where several chats run side by side, none of them slower for it, their shares are smaller.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from models.io import ChatTokens
from schedulers.answer_cost import AnswerCost, Observed
from schedulers.cost import Units
from serving.delivery.stream.wire import EngineImage, EngineRequest
from serving.errors import DeadlineExceeded, EngineFailed, ServingError
from serving.replica.chat.base import EngineDelta, Say
from serving.replica.chat.fake_engine import FakeChatEngine
from serving.tasks.chat.domain import ChatEnd, ChatEvent
from serving.telemetry.events import GuardConfirmed
from tests.support.chat_replicas import WATTS, Replica
from tests.support.guarded_chats import CAP_TOKENS, GuardedWorld, ScriptedScreen, calibration, request
from tests.support.virtual_loop import run_virtual
from tests.support.waiting import until

T = TypeVar("T")
NUM_CHATS = 1500
STEP_S, PREFILL_S, ENCODE_S = 0.001, 0.004, 0.006
TILE_TOKENS = 16
AGAIN = "-again"


class KnownCost(AnswerCost):
    """The prices are right, and nothing is learnt."""

    def observe(self, now_s: float, units: Units, **seen: float) -> list[Observed]:
        return []


def cost() -> AnswerCost:
    """The first token comes with the prompt."""
    prices = {"prompt_tokens": PREFILL_S + STEP_S, "image_tokens": ENCODE_S / TILE_TOKENS, "output_tokens": STEP_S}
    return KnownCost(prices, watts=WATTS)


def work(tokens: ChatTokens) -> Units:
    """The fake engine reads any prompt in the same time."""
    return {
        "prompt_tokens": float(tokens.text_tokens > 0),
        "image_tokens": tokens.image_tokens,
        "output_tokens": tokens.max_tokens,
    }


class Unreliable(FakeChatEngine):
    """With a tower, that keeps no picture; both fail at times. Answers are of any length, and those about copies often
    short. ``is_serial``: it does one thing at a time. ``looks``: tokens of each second look."""

    sees_apart = True

    def __init__(self, draw: random.Random, is_serial: bool) -> None:
        super().__init__(
            answer=lambda request: (
                "word" * draw.choice((4, 12, 60, 200)) if self._is_first(request) else self._copied()
            ),
            fails=lambda _: draw.random() < 0.03,
            step_s=STEP_S,
            prefill_s=PREFILL_S,
            encode_s=ENCODE_S,
            max_held_images=0,
        )
        self._draw = draw
        self.looks: list[int] = []
        self.num_looks: Counter[str] = Counter()
        self.num_glances = 0
        self._turn = asyncio.Semaphore(1 if is_serial else 1000)

    def _is_first(self, request: EngineRequest) -> bool:
        return not request.request_id.endswith(AGAIN)

    def _copied(self) -> str:
        return "word" * self._draw.choice((2, 6, 200))

    async def run(self, request: EngineRequest, say: Say) -> None:
        if self._is_first(request):
            return await super().run(request, say)
        self.looks.append(0)
        place = len(self.looks) - 1
        self.num_looks[request.request_id] += 1

        def count(delta: EngineDelta) -> bool:
            self.looks[place] += len(delta.token_ids)
            return bool(say(delta))

        await super().run(request, count)

    async def _sleep(self, seconds: float) -> None:
        async with self._turn:
            await super()._sleep(seconds)

    async def image_distance(self, one: EngineImage, other: EngineImage) -> float | None:
        self.num_glances += 1
        await self._sleep(ENCODE_S)
        if self._draw.random() < 0.1:
            raise EngineFailed("the tower fell")
        return self._draw.choice((0.0, 0.9))


class Chats:
    """Sends them, ``at_once`` at a time, and keeps how they ended."""

    def __init__(self, draw: random.Random, at_once: int) -> None:
        self._draw, self._at_once = draw, at_once
        self.engine = Unreliable(draw, is_serial=at_once == 1)
        known = calibration(squeeze=tuple(place / 10_000 for place in range(999)))
        self.replica = Replica("r", self.engine, max_running=12, linger_s=0.01, calibration=known)
        screen = ScriptedScreen({grey: draw.choice((1.0, 0.009, 0.0005)) for grey in range(256)})
        self.world = GuardedWorld(screen=screen, has_quarantine=False, replica=self.replica, cost=cost(), work=work)
        self.outcomes: Counter[str] = Counter()

    async def send(self, number: int) -> None:
        """One chat; who leaves does so at any time."""
        draw, said = self._draw, list[ChatEvent]()
        max_tokens = draw.choice((8, 40, 100))
        late_s = asyncio.get_running_loop().time() + (draw.uniform(0.01, 0.2) if draw.random() < 0.1 else 60.0)
        one = request(
            f"{number}",
            *draw.sample(range(256), draw.choice((0, 1, 1, 2))),
            sampling={"max_tokens": max_tokens, "n": draw.choice((1, 1, 2)) if self._at_once > 1 else 1},
            request_id=f"chat {number}",
            is_streamed=draw.random() < 0.5,
            deadline_s=late_s,
        )
        try:
            async with asyncio.timeout(draw.uniform(0.0, 0.2) if draw.random() < 0.1 else None):
                await self.world.service.chat(one, said.append)
        except TimeoutError:
            self.outcomes["left"] += 1
        except ServingError as error:
            self.outcomes["late" if isinstance(error, DeadlineExceeded) else "failed"] += 1
        else:
            end = said[-1]
            assert isinstance(end, ChatEnd)
            assert end.usage.completion_tokens <= max_tokens * one.sampling.n
            self.outcomes[str(end.report.guard.get("action", "unwatched"))] += 1

    async def all(self) -> None:
        """Until all is settled."""
        numbers = iter(range(NUM_CHATS))

        async def some() -> None:
            for number in numbers:
                await self.send(number)

        await asyncio.gather(*(some() for _ in range(self._at_once)))
        await until(lambda: not self.world.store.open)
        await self.world.stop()


async def inline(function: Callable[..., T], *arguments: Any) -> T:
    """In place of a thread, for which virtual time would not wait."""
    return function(*arguments)


@pytest.mark.parametrize(("at_once", "most_of_reserved"), [(1, 0.9), (6, 0.1)])
def test_no_chat_is_charged_more_than_was_reserved_and_every_busy_second_is_charged(
    monkeypatch: pytest.MonkeyPatch, at_once: int, most_of_reserved: float
) -> None:
    monkeypatch.setattr("serving.replica.chat.second_look.asyncio.to_thread", inline)

    async def run() -> Chats:
        chats = Chats(random.Random(11), at_once)
        await chats.all()
        return chats

    chats = run_virtual(run())
    pairs, engine = chats.world.store.pairs, chats.engine
    most = max(actual.joules / reserved.joules for reserved, actual in pairs)
    assert most_of_reserved < most <= 1 + 1e-9
    assert max(engine.looks) == CAP_TOKENS
    assert max(engine.num_looks.values()) == 1
    assert sum(actual.seconds for _, actual in pairs) == pytest.approx(chats.replica.hub.busy_s(), rel=1e-6)
    told = [one.probe_tokens for one in chats.world.told(GuardConfirmed)]
    assert 0 < sum(told) <= sum(engine.looks)
    assert engine.num_glances > 100
    for outcome in ("left", "late", "failed", "normal", "deprioritised", "capped", "unwatched"):
        assert chats.outcomes[outcome] >= 10, outcome
    assert engine.stats().running == engine.stats().kv_blocks_used == 0
