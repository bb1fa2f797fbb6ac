"""The chat service on virtual time, around real transport and a fake engine."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, cast

import numpy as np
import pytest

from models.contract import Knob
from models.io import ChatTokens
from models.operating_points import point_name
from schedulers.answer_cost import AnswerCost
from schedulers.bending import limits_of
from schedulers.cost import Units
from schedulers.plan import Cost, Point
from schedulers.retry_budget import RetryBudget
from serving.bending import Bending
from serving.delivery.pipeline import Pipeline, PipelineLimits
from serving.delivery.stream.links import ChatLinks
from serving.delivery.stream.wire import ChatDelta, EngineRequest, FinishReason
from serving.domain import Budget, Degradation, Priority, Surface, within_priority
from serving.energy.replica import ReplicaEnergy
from serving.errors import (
    BudgetInfeasible,
    DeadlineExceeded,
    DeadlineUnreachable,
    InvalidImage,
    PromptTooLong,
    QueueFull,
    QuotaExceeded,
    ReplicaLost,
    RetriesSpent,
    ServingError,
    UnknownModel,
)
from serving.fair_slots import SlotTurn
from serving.front.events import EventQueue
from serving.media.limits import MediaBudget, MediaLimits
from serving.media.pool import Caller
from serving.media.prepare import PreparedImage
from serving.media.request_images import FetchedImage
from serving.replica.chat.fake_engine import BytePrompts, FakeChatEngine
from serving.tasks.chat.domain import (
    ChatEnd,
    ChatEvent,
    ChatRequest,
    ImagePart,
    Message,
    Part,
    Role,
    Sampling,
    TextPart,
)
from serving.tasks.chat.points import Measured
from serving.tasks.chat.results import TenantKeys
from serving.tasks.chat.service import ChatService, ServedChat
from serving.telemetry.events import ChatAnswered, ChatRetried, Event, WorkPriced
from tests.support.chat_replicas import WATTS, LocalCalls, Replica
from tests.support.fake_service import make_chat_card
from tests.support.memory_results import MemoryResults
from tests.support.virtual_loop import run_virtual

MODEL = "fake-chat"
ANSWER = "the answer of the fake engine, " * 8
STEPS = len(ANSWER) // 4
STEP_S = 0.01


class Images:
    """Every image is as many tiles beside each other as it may be, two at least and eight at most, and a thumbnail; one
    that may be one is one. Its content is its bytes."""

    def __init__(self, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s

    async def fetch(self, parts: Sequence[ImagePart], caller: Caller, deadline_s: float) -> list[FetchedImage]:
        return [FetchedImage(part, part.encoded or b"", MediaBudget(MediaLimits())) for part in parts]

    def count_tiles(self, images: Sequence[FetchedImage], model_id: str, choices: Sequence[int]) -> dict[int, int]:
        return {most: sum(len(_cut(image, most)) for image in images) for most in choices}

    async def prepare(
        self, images: Sequence[FetchedImage], model_id: str, caller: Caller, max_tiles: int | None = None
    ) -> list[PreparedImage]:
        await asyncio.sleep(self.delay_s)
        if any(image.encoded == b"broken" for image in images):
            raise InvalidImage("broken")
        return [
            PreparedImage(
                pixels=(tiles := _cut(image, max_tiles)),
                content_sha256=hashlib.sha256(image.encoded).digest(),
                original_size=(8, 4),
                decode_ms=0.0,
                grid=(1, max(1, len(tiles) - 1)),
            )
            for image in images
        ]


def _cut(image: FetchedImage, max_tiles: int | None) -> np.ndarray[Any, np.dtype[np.uint8]]:
    most = min(image.part.most_tiles(max_tiles) or 2, 8)
    return np.zeros((most + (most > 1), 4, 4, 3), np.uint8)


TILES = Knob(
    name="max_tiles", default=8, low=1, high=8, grid=(1, 4, 8), is_integer=True, trades="detail for time", summary=""
)


def measured_point(quality: float, **settings: int) -> Point:
    cost = Cost(latency_s={}, busy_s={}, watts=WATTS)
    return Point(name=point_name(settings), settings=settings, cost=cost, quality=quality)


def work(tokens: ChatTokens) -> Units:
    return {"prompt_tokens": tokens.text_tokens + tokens.image_tokens, "output_tokens": tokens.max_tokens}


class Recorder:
    """A sink of what happens to chats."""

    def __init__(self) -> None:
        self.caches: list[str] = []
        self.num_retries = 0
        self.priced: list[WorkPriced] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, WorkPriced):
            self.priced.append(event)
        if isinstance(event, ChatAnswered):
            self.caches.append(event.report.cache)
        self.num_retries += isinstance(event, ChatRetried)


class Bent(Bending):
    """As deep as it is told to be."""

    def __init__(self) -> None:
        super().__init__({MODEL: limits_of(1.0)})
        self.now = 1.0
        self.lowered: list[bool] = []

    def depth(self, model: str, tenant: str, priority: Priority, queued_s: float, alone_s: float = 0.0) -> float:
        return self.now

    def planned(self, model: str, tenant: str, seconds: float, degradation: Degradation | None) -> None:
        self.lowered.append(degradation is not None)


class World:
    """One gateway's service, and what is behind it."""

    def __init__(
        self,
        num_replicas: int = 1,
        *,
        answer: Callable[[EngineRequest], str] = lambda request: ANSWER,
        burst_s: float = 1e9,
        images: Images | None = None,
        max_in_flight: int = 64,
        default_deadline_s: float = 60.0,
        prefill_s: float = 0.05,
        max_retries: int = 1000,
        knobs: tuple[Knob, ...] = (),
        measured: Sequence[Point] = (),
        slots: int = 64,
    ) -> None:
        self.seen: list[EngineRequest] = []

        def tell(request: EngineRequest) -> str:
            self.seen.append(request)
            return answer(request)

        engines = [FakeChatEngine(answer=tell, step_s=STEP_S, prefill_s=prefill_s) for _ in range(num_replicas)]
        self.replicas = [Replica(f"r{number}", engine) for number, engine in enumerate(engines)]
        self.calls = LocalCalls(*self.replicas)
        self.store = MemoryResults(burst_s)
        self.told = Recorder()
        self.cost = AnswerCost({"prompt_tokens": 1e-4, "output_tokens": 1e-3}, watts=WATTS)
        limits = {"max_model_len": 1024, "max_output_tokens": 256}
        self.card = dataclasses.replace(make_chat_card(MODEL), limits=limits, knobs=knobs)
        self.retries_left = RetryBudget(max_retries)
        served = ServedChat(
            card=self.card,
            prompts=BytePrompts(tokens_per_tile=16),
            links=ChatLinks(self.calls, "g"),
            cost=self.cost,
            retries=self.retries_left,
            work=work,
            watts=WATTS,
            slots=slots,
            measured=Measured(measured),
        )
        limits = PipelineLimits(max_in_flight=max_in_flight, default_deadline_s=default_deadline_s)
        clock = asyncio.get_running_loop().time
        self.pipeline = Pipeline(cast(Any, self.store), limits, clock=clock, tell=self.told, models=(MODEL, "other"))
        self.service = ChatService(
            {MODEL: served},
            images or Images(),
            self.pipeline,
            TenantKeys(b"secret" * 6),
        )

    async def ask(self, request: ChatRequest) -> list[ChatEvent]:
        events: list[ChatEvent] = []
        await self.ask_into(events, request)
        return events

    async def ask_into(self, events: list[ChatEvent], request: ChatRequest) -> None:
        await self.service.chat(request, events.append)

    async def events(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """As a front reads them; closing it is a client that leaves."""
        async with EventQueue(partial(self.service.chat, request)) as queue:
            while True:
                for event in await queue.take():
                    yield event

    async def check_nothing_is_left(self) -> None:
        """Every slot is free, every reservation settled, soon after; far sooner than an answer takes."""
        await asyncio.sleep(0.05)
        assert self.pipeline.in_flight == 0
        assert not self.pipeline._flights
        assert self.store.open == {}
        for replica in self.replicas:
            if not replica.is_dead.is_set():
                assert replica.hub.num_choices == 0
                assert replica.engine.stats().kv_blocks_used == 0


def request(text: str = "hello", *images: bytes, **fields: Any) -> ChatRequest:
    sampling = Sampling(**{"temperature": 0.0, **fields.pop("sampling", {})})
    parts: tuple[Part, ...] = (TextPart(text), *(ImagePart(encoded=image) for image in images))
    defaults: dict[str, Any] = {"tenant": "acme", "model": MODEL, "surface": Surface.HTTP_CLASSIFY, "request_id": "id"}
    return ChatRequest(messages=(Message(Role.USER, parts),), sampling=sampling, **{**defaults, **fields})


def virtual(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        run_virtual(test())

    run.__name__ = test.__name__
    return run


def text(events: list[ChatEvent], index: int = 0) -> str:
    return "".join(event.text for event in events if isinstance(event, ChatDelta) and event.index == index)


def end(events: list[ChatEvent]) -> ChatEnd:
    assert [isinstance(event, ChatEnd) for event in events] == [False] * (len(events) - 1) + [True]
    last = events[-1]
    assert isinstance(last, ChatEnd)
    return last


# -- answers ---------------------------------------------------------------------------------------------------------


@virtual
async def test_answer_usage_and_report() -> None:
    world = World()
    events = await world.ask(request("hello", b"image"))
    assert text(events) == ANSWER
    usage, report = end(events).usage, end(events).report
    assert (usage.prompt_tokens, usage.completion_tokens, usage.image_tokens) == (6 + 49, STEPS, 48)
    assert report.compute_ms == pytest.approx(50 + STEPS * 10, rel=0.02)
    assert report.energy_j == pytest.approx(report.compute_ms / 1e3 * WATTS)
    assert (report.operating_point, report.energy_source, report.cache) == ("max_tokens=256", "estimate", "miss")
    assert world.store.settled_s == [pytest.approx(report.compute_ms / 1e3)]
    await world.check_nothing_is_left()


@virtual
async def test_replica_is_told_once_what_other_models_served_the_tenant() -> None:
    told: list[float] = []

    class Turn(SlotTurn):
        def __init__(self, *args: Any, elsewhere_j: float = 0.0, **fields: Any) -> None:
            told.append(elsewhere_j)
            super().__init__(*args, elsewhere_j=elsewhere_j, **fields)

    world = World()
    world.pipeline.served("acme", "other", 5.0)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("serving.replica.chat.hub.SlotTurn", Turn)
        await world.ask(request(sampling={"n": 2, "temperature": 1.0}))
        await world.ask(request("again"))
    assert told == [pytest.approx(5.0, rel=0.01), 0.0, 0.0]


@virtual
async def test_unary_answers_come_in_one_delta_per_choice() -> None:
    world = World(answer=lambda request: f"{ANSWER} seed {request.seed}")
    events = await world.ask(request(is_streamed=False, sampling={"n": 3, "seed": 7, "temperature": 1.0}))
    assert [event.index for event in events if isinstance(event, ChatDelta)] == [0, 1, 2]
    assert [text(events, index)[-6:] for index in range(3)] == ["seed 7", "seed 8", "seed 9"]
    assert end(events).usage.prompt_tokens == 5
    await world.check_nothing_is_left()


@virtual
async def test_what_the_engine_gets_names_images_and_tenants_by_keys_of_ours() -> None:
    world = World()
    for tenant in ("acme", "acme", "rival"):
        sampling = {"temperature": 0.5, "stop": ("zz",)}
        await world.ask(request("hi", b"image", tenant=tenant, sampling=sampling))
    first, same, other = world.seen
    assert first.images[0].key == same.images[0].key != other.images[0].key
    assert first.cache_salt == same.cache_salt != other.cache_salt
    assert bytes.fromhex(first.images[0].key)
    assert (first.stop, first.images[0].grid) == (("zz",), (1, 2))
    assert len({seen.request_id for seen in world.seen}) == 3
    assert [route.key for route in world.calls.routes] == [seen.images[0].key for seen in world.seen]


# -- exact results ---------------------------------------------------------------------------------------------------


@virtual
async def test_a_repeated_request_is_answered_from_the_cache_for_nothing() -> None:
    world = World()
    first = await world.ask(request("hello", b"image"))
    again = await world.ask(request("hello", b"image", is_streamed=False))
    assert text(again) == text(first)
    assert len(world.seen) == 1
    assert end(again).report.cache == "hit"
    assert end(again).report.energy_j == 0.0
    assert dataclasses.replace(end(again).usage, cached_tokens=0) == end(first).usage
    assert world.told.caches == ["miss", "hit"]
    assert len(world.store.settled_s) == 1


@virtual
async def test_equal_whole_requests_under_way_are_generated_once_and_only_their_leader_pays() -> None:
    world = World()
    tasks = [asyncio.create_task(world.ask(request(is_streamed=False))) for _ in range(4)]
    other = asyncio.create_task(world.ask(request(is_streamed=False, sampling={"temperature": 1.0})))
    await asyncio.sleep(0.1)
    assert len(world.seen) == 2
    answers = [await task for task in tasks]
    assert {text(answer) for answer in answers} == {ANSWER}
    assert [end(answer).report.cache for answer in answers] == ["miss", "hit", "hit", "hit"]
    assert [end(answer).report.energy_j > 0 for answer in answers] == [True, False, False, False]
    await other
    assert len(world.store.settled_s) == 2
    await world.check_nothing_is_left()


@pytest.mark.parametrize("how", ["leaves", "is late", "loses its replica"])
def test_when_the_leader_has_no_answer_one_of_the_others_takes_over(how: str) -> None:
    async def run() -> None:
        world = World()
        budget = Budget(latency_ms=200) if how == "is late" else Budget()
        leader = asyncio.create_task(world.ask(request(is_streamed=False, budget=budget)))
        await asyncio.sleep(0.02)
        followers = [asyncio.create_task(world.ask(request(is_streamed=False))) for _ in range(3)]
        await asyncio.sleep(0.1)
        assert len(world.seen) == 1
        if how == "leaves":
            leader.cancel()
        elif how == "loses its replica":
            world.retries_left.floor = 1
            assert world.retries_left.spend(asyncio.get_running_loop().time())
            replacement = Replica("new", FakeChatEngine(answer=lambda request: ANSWER, step_s=STEP_S))
            await world.replicas[0].kill()
            world.calls.replicas.append(replacement)
        answers = [await task for task in followers]
        assert {text(answer) for answer in answers} == {ANSWER}
        assert sorted(end(answer).report.cache for answer in answers) == ["hit", "hit", "miss"]
        await asyncio.wait([leader])
        assert leader.cancelled() or isinstance(leader.exception(), DeadlineExceeded | RetriesSpent)
        await world.check_nothing_is_left()

    run_virtual(run())


@virtual
async def test_streams_neither_give_nor_take_what_is_under_way() -> None:
    world = World()
    tasks = [asyncio.create_task(world.ask(request(is_streamed=is_streamed))) for is_streamed in (True, False, True)]
    await asyncio.sleep(0.1)
    assert len(world.seen) == 3
    await asyncio.gather(*tasks)
    await world.check_nothing_is_left()


@pytest.mark.parametrize(
    "other",
    [
        {"tenant": "rival"},
        {"sampling": {"max_tokens": 5}},
        {"sampling": {"stop": ("answer",)}},
        {"sampling": {"seed": 1}},
        {"sampling": {"n": 2}},
        {"sampling": {"top_p": 0.5}},
        {"sampling": {"json_schema": "{}"}},
        {"sampling": {"logit_bias": {1: 2.0}}},
        {"sampling": {"logprobs": 0}},
        {"sampling": {"temperature": 0.1}},
        {"images": (b"another",)},
        {"images": ()},
        {"images": (b"image", b"image")},
        {"text": "hellO"},
    ],
    ids=str,
)
def test_anything_else_is_another_result(other: dict[str, Any]) -> None:
    async def run() -> None:
        world = World()
        await world.ask(request("hello", b"image"))
        fields = dict(other)
        events = await world.ask(request(fields.pop("text", "hello"), *fields.pop("images", (b"image",)), **fields))
        assert end(events).report.cache == "miss"

    run_virtual(run())


@virtual
async def test_answers_that_may_differ_or_broke_off_are_not_kept() -> None:
    world = World()
    await world.ask(request(sampling={"temperature": 0.7}))
    await world.ask(request(sampling={"logprobs": 2}))
    async with aclosing(world.events(request())) as events:
        await anext(events)
    assert world.store.payloads == {}
    await world.ask(request())
    assert len(world.store.payloads) == 1


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        (request(model="other"), UnknownModel, "fake-chat"),
        (
            request("x" * 1024),
            PromptTooLong,
            "This model's maximum context length is 1024 tokens. However, your messages resulted in 1024 tokens",
        ),
        (
            request("x" * 900, sampling={"max_tokens": 200}),
            PromptTooLong,
            r"is 1024 tokens. However, you requested 1100 tokens \(900 in the messages, 200 in the completion\)",
        ),
        (request("x" * 1030, sampling={"max_tokens": 200}), PromptTooLong, "resulted in 1030 tokens"),
        (request("hi", b"broken"), InvalidImage, "broken"),
    ],
    ids=["model", "prompt", "together", "prompt_alone", "image"],
)
def test_bad_requests_are_refused_before_anything_runs(bad: ChatRequest, error: type[ServingError], words: str) -> None:
    async def run() -> None:
        world = World()
        with pytest.raises(error, match=words):
            await world.ask(bad)
        assert world.seen == []
        assert world.store.num_look_ups == 0
        await world.check_nothing_is_left()

    run_virtual(run())


@virtual
async def test_the_cap_of_the_server_is_above_what_is_asked_for() -> None:
    world = World()
    await world.ask(request(sampling={"max_tokens": 100_000}))
    await world.ask(request("x" * 900))
    assert [seen.max_tokens for seen in world.seen] == [256, 124]


@virtual
async def test_quotas_are_reserved_settled_and_refuse() -> None:
    world = World(burst_s=0.3)
    with pytest.raises(QuotaExceeded):
        await world.ask(request(sampling={"n": 2}))
    assert world.seen == []
    await world.ask(request())
    await world.check_nothing_is_left()


@virtual
async def test_joules_of_answers_say_nothing_of_their_seconds() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReplicaEnergy, "take", lambda self, work_s: 50.0 * WATTS * work_s)
        world = World()
        for number in range(3):
            await world.ask(request(str(number)))
    factors = world.service._models[MODEL].overruns.factors
    assert factors.joules > 20.0 * factors.seconds


@virtual
async def test_a_full_gateway_refuses() -> None:
    world = World(max_in_flight=2)
    running = [asyncio.create_task(world.ask(request(str(number)))) for number in range(2)]
    await asyncio.sleep(0.1)
    with pytest.raises(QueueFull, match="serves 2 requests"):
        await world.ask(request())
    await asyncio.gather(*running)
    await world.ask(request())
    await world.check_nothing_is_left()


# -- budgets ---------------------------------------------------------------------------------------------------------


@virtual
async def test_a_budget_caps_the_answer_and_says_so() -> None:
    world = World()
    await world.ask(request("learn the prices"))
    events = await world.ask(request("learn the prices", budget=Budget(energy_j=0.2 * WATTS)))
    report = end(events).report
    assert report.degraded == ("max_tokens",)
    assert report.energy_j == pytest.approx(0.2 * WATTS, rel=0.15)
    assert end(events).usage.completion_tokens < STEPS
    events = await world.ask(request("learn the prices", budget=Budget(latency_ms=300)))
    assert end(events).report.degraded == ("max_tokens",)
    assert len(world.store.payloads) == 1


@virtual
async def test_a_budget_that_does_not_bite_is_not_told() -> None:
    world = World()
    await world.ask(request())
    events = await world.ask(request("other", budget=Budget(energy_j=1e6, latency_ms=60_000)))
    assert end(events).report.degraded == ()


@pytest.mark.parametrize("budget", [Budget(energy_j=1e-6), Budget(latency_ms=5)], ids=["energy", "latency"])
def test_a_budget_below_one_token_is_infeasible_once_prices_are_known(budget: Budget) -> None:
    async def run() -> None:
        world = World()
        await world.ask(request("hello"))
        with pytest.raises(BudgetInfeasible, match="the nearest, max_tokens=1, breaks"):
            await world.ask(request("hello there", budget=budget))
        await asyncio.sleep(60.0)  # old prices refuse nobody: otherwise none would ever be learnt again
        if budget.energy_j is not None:
            await world.ask(request("hello there", budget=budget))
        await world.check_nothing_is_left()

    run_virtual(run())


@virtual
async def test_parts_of_an_answer_are_told_as_predicted_and_as_they_were() -> None:
    world = World()
    for text in ("hello", "world"):
        await world.ask(request(text, sampling={"max_tokens": 8}))
    first, again = world.told.priced[:3], world.told.priced[3:]
    assert {one.model for one in world.told.priced} == {MODEL}
    assert [one.kind for one in first] == [one.kind for one in again] == ["read", "write", "wait"]
    errors = [sum(abs(one.predicted_s - one.actual_s) for one in ones) for ones in (first, again)]
    assert errors[1] < 0.2 * errors[0], "the first answer was a guess"
    assert all(one.actual_s > 0.0 and one.correction for one in again)


@virtual
async def test_answers_before_a_request_count_against_its_latency() -> None:
    world = World(slots=1)
    await world.ask(request("hello", sampling={"max_tokens": 8}))  # what answers cost is known now
    waits = asyncio.create_task(world.ask(request("first", sampling={"max_tokens": 200})))
    await asyncio.sleep(0.1)
    tight = Budget(latency_ms=1e3 * (world.cost.busy_s(work(ChatTokens(9, 0, 1))) + world.cost.answer_s / 2))
    with pytest.raises(DeadlineUnreachable, match="or retry in") as caught:
        await world.ask(request("second", budget=tight, sampling={"max_tokens": 1}))
    assert 0.0 < (caught.value.retry_after_s or 0.0) <= world.cost.answer_s
    await waits
    assert end(await world.ask(request("second", budget=tight, sampling={"max_tokens": 1})))
    await world.check_nothing_is_left()


@virtual
async def test_queue_that_is_longer_than_any_deadline_allows_refuses_at_once() -> None:
    world = World(slots=1, default_deadline_s=2.0)
    await world.ask(request("hello"))  # what answers cost is known now
    fitting = int(2.0 / world.cost.answer_s) + 1
    waiting = [asyncio.create_task(world.ask(request(str(n)))) for n in range(fitting)]
    await asyncio.sleep(0.1)
    begun_s = asyncio.get_running_loop().time()
    with pytest.raises(DeadlineUnreachable, match="the queue takes") as caught:
        await world.ask(request("one more"))
    assert asyncio.get_running_loop().time() == begun_s, "at once"
    assert 0.0 < (caught.value.retry_after_s or 0.0) <= world.cost.answer_s
    assert end(await world.ask(request("whose turn comes first", tenant="other")))
    await asyncio.gather(*waiting, return_exceptions=True)
    assert end(await world.ask(request("one more"))), "once they are gone"
    await world.check_nothing_is_left()


class Unseen(Images):
    """Nothing is to be fetched."""

    async def fetch(self, parts: Sequence[ImagePart], caller: Caller, deadline_s: float) -> list[FetchedImage]:
        raise AssertionError(f"{len(parts)} pictures were fetched")


@virtual
async def test_latency_that_the_queue_leaves_no_time_for_is_refused_before_pictures_are_fetched() -> None:
    world = World(slots=1, images=Unseen())
    await world.ask(request("hello"))
    waiting = [asyncio.create_task(world.ask(request(str(n)))) for n in range(9)]
    await asyncio.sleep(0.1)
    soon, now = Budget(latency_ms=2e3 * world.cost.answer_s), Budget(latency_ms=1e-3)
    with pytest.raises(DeadlineUnreachable, match="retry in"):
        await world.ask(request("look", b"picture", budget=soon))
    with pytest.raises(BudgetInfeasible):
        await world.ask(request("look", b"picture", budget=now))
    await asyncio.gather(*waiting, return_exceptions=True)
    await world.check_nothing_is_left()


@virtual
async def test_a_floor_is_met_by_what_was_measured_and_by_no_answer_that_is_cut_short() -> None:
    with pytest.raises(BudgetInfeasible, match="not measured"):
        await World().ask(request(budget=Budget(quality_floor=0.1)))
    world = World(measured=[measured_point(0.5, max_tokens=256)])
    assert end(await world.ask(request(budget=Budget(quality_floor=0.5)))).report.degraded == ()
    with pytest.raises(BudgetInfeasible, match=r"quality 0\.5000 under 0\.6000"):
        await world.ask(request("other", budget=Budget(quality_floor=0.6)))
    with pytest.raises(BudgetInfeasible):
        await world.ask(request("another", budget=Budget(quality_floor=0.5, energy_j=0.2 * WATTS)))


@virtual
async def test_pictures_become_coarser_before_a_budget_is_missed() -> None:
    world = World(
        knobs=(TILES,), measured=[measured_point(0.4 + n / 100, max_tiles=n, max_tokens=8) for n in (1, 4, 8)]
    )
    events = await world.ask(request("hi", b"image", sampling={"max_tokens": 8}))
    assert (end(events).report.operating_point, end(events).report.degraded) == ("max_tiles=8,max_tokens=8", ())
    assert end(events).usage.image_tokens == 9 * 16
    joules = WATTS * world.cost.busy_s(work(ChatTokens(100, 0, 8)))
    events = await world.ask(request("ho", b"image", sampling={"max_tokens": 8}, budget=Budget(energy_j=joules)))
    assert (end(events).report.operating_point, end(events).report.degraded) == (
        "max_tiles=4,max_tokens=8",
        ("max_tiles",),
    )
    assert end(events).usage.image_tokens == 5 * 16
    with pytest.raises(BudgetInfeasible, match=r"max_tiles=8,max_tokens=8, breaks quality 0\.4800 under 0\.6000"):
        await world.ask(request("he", b"image", sampling={"max_tokens": 8}, budget=Budget(quality_floor=0.6)))


@virtual
async def test_pictures_become_coarser_and_open_answers_shorter_under_load() -> None:
    known = [measured_point(0.4 + n / 100, max_tiles=n, max_tokens=cap) for n in (1, 4, 8) for cap in (8, 256)]
    world = World(knobs=(TILES,), measured=known)
    world.pipeline.bending = bent = Bent()
    seen = []
    asked = (({"max_tokens": 8}, {}), ({"max_tokens": 8}, {"max_tiles": 8}), ({}, {}), ({}, {"max_tiles": 8}))
    for number, (sampling, settings) in enumerate(asked):
        each = request(str(number), b"image", sampling=sampling, budget=Budget(settings=settings))
        report = end(await world.ask(each)).report
        why = None if report.degradation is None else (report.degradation.from_point, report.degradation.reasons)
        seen.append((report.operating_point, report.degraded, why))
    best = "max_tiles=8,max_tokens=256"
    assert seen == [
        ("max_tiles=1,max_tokens=8", ("max_tiles", "load"), ("max_tiles=8,max_tokens=8", ("load",))),
        ("max_tiles=8,max_tokens=8", (), None),
        ("max_tiles=1,max_tokens=8", ("max_tiles", "max_tokens", "load"), (best, ("load",))),
        ("max_tiles=8,max_tokens=8", ("max_tokens", "load"), (best, ("load",))),
    ]
    assert bent.lowered == [True, False, True, True]
    bent.now = 0.0  # the same again, once the load is gone, are answers of their own
    again = end(await world.ask(request("0", b"image", sampling={"max_tokens": 8}))).report
    assert (again.operating_point, again.cache, again.degraded) == ("max_tiles=8,max_tokens=8", "miss", ())
    await world.check_nothing_is_left()


@virtual
async def test_words_alone_are_cut_only_where_the_cap_is_open_and_was_measured() -> None:
    world = World(measured=[measured_point(0.4 + cap / 1000, max_tokens=cap) for cap in (8, 16, 256)])
    world.pipeline.bending = Bent()
    points = []
    for number, sampling in enumerate(({}, {"max_tokens": 200}, {"min_tokens": 10})):
        points.append(end(await world.ask(request(str(number), sampling=sampling))).report.operating_point)
    assert points == ["max_tokens=8", "max_tokens=200", "max_tokens=16"]


@virtual
async def test_a_request_may_say_how_finely_its_pictures_are_cut() -> None:
    world = World(knobs=(TILES,))
    seen = []
    for text, is_coarse, settings in (("a", False, {}), ("b", False, {"max_tiles": 3}), ("c", True, {})):
        part = ImagePart(encoded=b"image", is_coarse=is_coarse)
        asked = request(text, budget=Budget(settings=settings), sampling={"max_tokens": 8})
        asked = dataclasses.replace(asked, messages=(Message(Role.USER, (TextPart(text), part)),))
        seen.append(end(await world.ask(asked)).report.operating_point)
    assert seen == ["max_tiles=8,max_tokens=8", "max_tiles=3,max_tokens=8", "max_tiles=1,max_tokens=8"]
    assert len({one.images[0].key for one in world.seen}) == 3, "other tiles of the same picture are another image"
    assert [one.images[0].grid for one in world.seen] == [(1, 8), (1, 3), (1, 1)]


@virtual
async def test_pictures_that_do_not_fit_the_context_are_cut_into_fewer_tiles() -> None:
    world = World(knobs=(TILES,))
    events = await world.ask(request("hi", *([b"image"] * 7), sampling={"max_tokens": 8}))
    assert end(events).report.operating_point == "max_tiles=4,max_tokens=8"
    assert end(events).report.degraded == ("max_tiles",)
    with pytest.raises(PromptTooLong):
        await world.ask(
            request("hi", *([b"image"] * 7), sampling={"max_tokens": 8}, budget=Budget(settings={"max_tiles": 8}))
        )


# -- deadlines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["images", "store", "prefill", "decode", "no replica"])
def test_the_deadline_is_a_typed_error_wherever_it_falls(where: str) -> None:
    async def run() -> None:
        world = World(
            num_replicas=0 if where == "no replica" else 1,
            images=Images(9.0 if where == "images" else 0.0),
            prefill_s=9.0 if where == "prefill" else 0.05,
        )
        if where == "store":
            world.store.gate = asyncio.Event()
        loop = asyncio.get_running_loop()
        events: list[ChatEvent] = []
        with pytest.raises(DeadlineExceeded):
            await world.ask_into(events, request("hi", b"image", deadline_s=loop.time() + 0.3))
        assert loop.time() == pytest.approx(0.3, abs=0.01)
        assert bool(events) == (where == "decode")
        await asyncio.sleep(2.0)
        await world.check_nothing_is_left()

    run_virtual(run())


# -- leaving ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after_s", [0.0, 0.0005, 0.0015, 0.003, 0.0045, 0.03, 0.2])
@pytest.mark.parametrize("is_streamed", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("num_choices", [1, 3])
def test_cancelling_the_task_frees_everything_at_once(after_s: float, is_streamed: bool, num_choices: int) -> None:
    async def run() -> None:
        world = World(images=Images(0.001))
        asked = request("hi", b"image", is_streamed=is_streamed, sampling={"n": num_choices})
        task = asyncio.create_task(world.ask(asked))
        await asyncio.sleep(after_s)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await world.check_nothing_is_left()
        assert all(seconds >= 0.0 for seconds in world.store.settled_s)

    run_virtual(run())


@virtual
async def test_leaving_frees_everything_and_charges_what_was_used() -> None:
    world = World()
    async with aclosing(world.events(request())) as events:
        for _ in range(10):
            await anext(events)
    await world.check_nothing_is_left()
    assert world.store.settled_s == [pytest.approx(0.05 + 10 * STEP_S, rel=0.1)]


@virtual
async def test_giving_up_before_the_first_token_is_not_free() -> None:
    world = World(prefill_s=1.0)
    task = asyncio.create_task(world.ask(request()))
    await asyncio.sleep(0.5)
    task.cancel()
    await asyncio.wait([task])
    await world.check_nothing_is_left()
    assert world.store.settled_s == [pytest.approx(0.5, abs=0.02)]


@virtual
async def test_an_empty_account_is_turned_away_before_its_images_are_looked_at() -> None:
    images = Images()
    world = World(images=images)
    world.store.is_empty = True
    with pytest.raises(QuotaExceeded):
        await world.ask(request("hi", b"broken"))
    assert world.store.num_look_ups == 0
    await world.check_nothing_is_left()


@virtual
async def test_what_was_lowered_to_what_the_tenant_is_allowed_is_said() -> None:
    world = World()
    budget = within_priority(Budget(priority=Priority.HIGH), Priority.NORMAL)
    for _ in range(2):  # computed, then from the cache
        assert end(await world.ask(request(budget=budget))).report.degraded == ("priority",)


# -- losing replicas -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("death", ["process", "engine"])
def test_a_whole_answer_is_sent_again_when_its_replica_dies(death: str) -> None:
    async def run() -> None:
        world = World(num_replicas=2)
        task = asyncio.create_task(world.ask(request(is_streamed=False, sampling={"n": 2})))
        await asyncio.sleep(0.3)
        await kill(world.replicas[0], death)
        events = await task
        assert text(events) == text(events, 1) == ANSWER
        assert end(events).usage.completion_tokens == 2 * STEPS
        assert world.told.num_retries == 1
        assert world.replicas[1].told.num_finished == 2
        await world.check_nothing_is_left()

    run_virtual(run())


@pytest.mark.parametrize("death", ["process", "engine"])
def test_a_stream_that_has_begun_ends_with_one_error(death: str) -> None:
    async def run() -> None:
        world = World(num_replicas=2)
        events: list[ChatEvent] = []
        task = asyncio.create_task(world.ask_into(events, request()))
        await asyncio.sleep(0.2)
        await kill(world.replicas[0], death)
        with pytest.raises(ReplicaLost):
            await task
        assert len(events) >= 5
        assert world.told.num_retries == 0
        await world.check_nothing_is_left()

    run_virtual(run())


@virtual
async def test_a_stream_that_has_not_begun_is_sent_again() -> None:
    world = World(num_replicas=2, prefill_s=0.5)
    task = asyncio.create_task(world.ask(request()))
    await asyncio.sleep(0.2)
    await kill(world.replicas[0], "process")
    assert text(await task) == ANSWER
    assert world.calls.routes[-1].avoid == ("r0",)


@virtual
async def test_a_request_that_kills_replicas_gets_no_more_of_them() -> None:
    world = World(num_replicas=6, prefill_s=0.5)
    task = asyncio.create_task(world.ask(request(is_streamed=False)))
    for _ in range(100):
        await asyncio.sleep(0.05)
        for replica in world.replicas:
            if replica.hub.num_choices:
                await kill(replica, "process")
    with pytest.raises(ReplicaLost):
        await task
    assert sum(replica.is_dead.is_set() for replica in world.replicas) == 3
    await world.check_nothing_is_left()


@virtual
async def test_a_request_waits_for_the_replacement_of_a_dead_engine() -> None:
    world = World()
    await kill(world.replicas[0], "engine")
    task = asyncio.create_task(world.ask(request(is_streamed=False)))
    await asyncio.sleep(3.0)
    await world.replicas[0].kill()
    world.calls.replicas.append(Replica("new", FakeChatEngine(answer=lambda request: ANSWER, step_s=STEP_S)))
    assert text(await task) == ANSWER
    await world.check_nothing_is_left()


@virtual
async def test_a_fault_of_all_replicas_is_not_multiplied_by_retries() -> None:
    world = World(num_replicas=2, max_retries=3)
    tasks = [asyncio.create_task(world.ask(request(str(number), is_streamed=False))) for number in range(6)]
    await asyncio.sleep(0.1)
    await world.replicas[0].kill()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(outcome, RetriesSpent) for outcome in outcomes) == 3
    assert sum(isinstance(outcome, list) for outcome in outcomes) == 3
    await world.check_nothing_is_left()


async def kill(replica: Replica, death: str) -> None:
    if death == "engine":
        replica.engine.die()
    else:
        await replica.kill()


# -- all together ----------------------------------------------------------------------------------------------------


@virtual
async def test_every_request_ends_once_whatever_happens() -> None:
    world = World(num_replicas=3, max_in_flight=40)
    outcomes: list[str] = []

    async def one(number: int) -> None:
        budget = Budget(latency_ms=300) if number % 7 == 0 else Budget()
        try:
            asked = request(
                f"{number}", b"i", is_streamed=number % 2 == 0, budget=budget, sampling={"n": number % 3 + 1}
            )
            outcomes.append(end(await world.ask(asked)).report.cache)
        except ServingError as error:
            outcomes.append(error.code)
        except asyncio.CancelledError:
            outcomes.append("cancelled")

    tasks = []
    for number in range(60):
        tasks.append(asyncio.create_task(one(number)))
        await asyncio.sleep(0.013)
        if number % 5 == 0:
            tasks[number // 2].cancel()
        if number == 30:
            await kill(world.replicas[0], "process")
    await asyncio.gather(*tasks)
    assert len(outcomes) == 60
    assert set(outcomes) <= {"miss", "cancelled", "queue_full", "replica_lost", "deadline_exceeded"}
    assert outcomes.count("miss") > 20
    await asyncio.sleep(1.0)
    await world.check_nothing_is_left()


def test_finish_reason_at_the_cap() -> None:
    async def run() -> None:
        world = World()
        events = await world.ask(request(sampling={"max_tokens": 5}))
        deltas = [event for event in events if isinstance(event, ChatDelta)]
        assert deltas[-1].finish_reason is FinishReason.LENGTH
        assert end(events).usage.completion_tokens == 5
        assert end(events).report.degraded == ()

    run_virtual(run())
