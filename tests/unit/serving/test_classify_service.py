"""The classify service where it meets accounts: what is turned away before it costs anything, and what is settled."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from schedulers.admission import Cost
from serving.delivery.unary.wire import SampleAnswer, SampleOutcome
from serving.domain import Budget, ClassifyRequest, ImageInput, Surface
from serving.errors import QuotaExceeded
from serving.media.limits import MediaLimits
from serving.media.prepare import PreparedImage
from serving.stores.results import Lookup
from serving.tasks.classify.service import ClassifyService, ServiceLimits
from tests.support import media_files as files

MODEL = "m"
LIMITS = ServiceLimits(max_images=8, max_in_flight=8, default_deadline_s=5.0)
TABLE = SimpleNamespace(watts=4.0)
CHOICE = SimpleNamespace(
    point=SimpleNamespace(name="full", thresholds=(0.0,)), predicted_j=1.0, predicted_work_s=0.25, degraded=()
)


class Media:
    """Counts what it prepares."""

    limits = MediaLimits()

    def __init__(self) -> None:
        self.callers: list[Any] = []

    async def prepare(self, data: bytes, model: str, budget: object, caller: Any) -> PreparedImage:
        self.callers.append(caller)
        return PreparedImage(
            pixels=files.noise(4, 4), content_sha256=b"c" * 32, original_size=(4, 4), decode_ms=0.0, grid=None
        )


class Results:
    """An account, and what was settled on it."""

    def __init__(self) -> None:
        self.is_empty = False
        self.settled: list[Cost] = []

    def check_account(self, tenant: str) -> None:
        if self.is_empty:
            raise QuotaExceeded("empty", retry_after_s=1.0)

    def key(self, *parts: object) -> str:
        return "key"

    async def look_up(self, keys: Sequence[str], *_: object) -> Lookup:
        return Lookup((None,) * len(keys), None)

    def settle(self, lookup: Lookup, watts: float, outcomes: Sequence[SampleOutcome]) -> None:
        seconds = sum(outcome.compute_s for outcome in outcomes)
        self.settled.append(Cost(seconds * watts, seconds))

    def put(self, *_: object) -> None:
        pass


class Dispatcher:
    """Answers when told to, with half a second for each sample."""

    def __init__(self) -> None:
        self.gate, self.entered = asyncio.Event(), asyncio.Event()
        self.settle: Any = None

    def predicted_wait_s(self) -> float:
        return 0.0

    async def run(self, samples: Sequence[object], predicted_s: float, settle: Any) -> list[SampleAnswer]:
        self.settle = settle
        self.entered.set()
        await self.gate.wait()
        answers = [SampleAnswer(b"\0\0\x80\x3f", 0, False, 0.0, 0.5) for _ in samples]
        settle(answers)
        return answers


class World:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ClassifyService, "_choose", lambda *_: CHOICE)
        self.media, self.results, self.dispatcher = Media(), Results(), Dispatcher()
        card = SimpleNamespace(id=MODEL, num_classes=1)
        model = SimpleNamespace(card=card, table=TABLE, dispatcher=self.dispatcher, label=str)
        parts = cast(Any, ({MODEL: model}, self.media, self.results))
        self.service = ClassifyService(*parts, LIMITS)

    def ask(self, budget: Budget = Budget()) -> asyncio.Task[Any]:  # noqa: B008 - frozen
        images = (ImageInput(encoded=b"x"), ImageInput(encoded=b"y"))
        request = ClassifyRequest(
            request_id="r", surface=Surface.HTTP_CLASSIFY, tenant="acme", model=MODEL, images=images, budget=budget
        )
        return asyncio.create_task(self.service.classify(request))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


async def test_empty_account_is_turned_away_before_an_image_is_decoded(world: World) -> None:
    world.results.is_empty = True
    with pytest.raises(QuotaExceeded):
        await world.ask()
    assert world.media.callers == []


async def test_images_are_decoded_on_the_account_of_their_tenant(world: World) -> None:
    world.dispatcher.gate.set()
    await world.ask()
    assert {caller.tenant for caller in world.media.callers} == {"acme"}
    assert world.results.settled == [Cost(4.0, 1.0)]


async def test_who_leaves_is_settled_by_the_dispatcher_and_by_nobody_else(world: World) -> None:
    task = world.ask()
    await asyncio.wait_for(world.dispatcher.entered.wait(), 5)
    task.cancel()
    await asyncio.wait([task])
    assert world.results.settled == []
    world.dispatcher.settle([SampleAnswer(b"", 0, False, 0.0, 0.25)])
    assert world.results.settled == [Cost(1.0, 0.25)]


async def test_what_was_lowered_is_in_the_report(world: World) -> None:
    world.dispatcher.gate.set()
    reply = await world.ask(Budget(degraded=("priority",)))
    assert reply.report.degraded == ("priority",)
