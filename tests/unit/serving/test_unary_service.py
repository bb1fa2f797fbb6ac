"""Requests of rows where it meets accounts and equal requests: what is turned away, shared and settled."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from models.io import ImageIO
from schedulers.admission import Cost
from schedulers.bending import limits_of
from schedulers.plan import Cost as PointCost
from schedulers.plan import Point
from serving.bending import Bending
from serving.delivery.pipeline import Pipeline, PipelineLimits
from serving.delivery.unary.service import ServedModel, UnaryRequests
from serving.delivery.unary.wire import SampleAnswer, SampleCall, SampleFailure, SampleOutcome
from serving.domain import Budget, Degradation, ImageInput, Priority, Surface, UnaryReply, UnaryRequest
from serving.energy.spent import Spent
from serving.errors import (
    BudgetInfeasible,
    DeadlineUnreachable,
    DeepShareSpent,
    EngineFailed,
    InvalidRequest,
    QueueFull,
    QuotaExceeded,
    ServingError,
    TooManyInFlight,
)
from serving.media.limits import MediaLimits
from serving.media.prepare import PreparedImage
from serving.operating_points import Points
from serving.telemetry.events import EnergySpent
from tests.support.fake_service import make_card, make_image_card
from tests.support.memory_results import MemoryResults
from tests.support.waiting import until

MODEL = "m"
POINT = Point(name="full", settings={}, cost=PointCost(latency_s={}, busy_s={"rows": 0.25}, watts=4.0))
POINTS = SimpleNamespace(
    points=(POINT,),
    watts=4.0,
    cost_model=None,
    work=lambda settings, request=None: {"rows": 1.0},
    is_calibrated=True,
)
CHOICE = SimpleNamespace(point=POINT, energy_j=1.0, busy_s=0.25, degraded=(), best=None)
ANSWER = SampleAnswer({"probabilities": ("<f4", (1,), b"\0\0\x80\x3f")}, 0, False, 0.0, 0.5, 2.0, "nvml")


class Media:
    """Counts what it prepares; the content of an image is its bytes."""

    limits = MediaLimits()

    def __init__(self) -> None:
        self.callers: list[Any] = []

    async def prepare(self, data: bytes, model: str, budget: object, caller: Any) -> PreparedImage:
        self.callers.append(caller)
        pixels = np.full((4, 4, 3), data[0], np.uint8)
        return PreparedImage(
            pixels=pixels, content_sha256=data.ljust(32), original_size=(4, 4), decode_ms=0.0, grid=None
        )


class Dispatcher:
    """Holds each request until it is told what becomes of it; half a second for each sample."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, asyncio.Future[list[SampleOutcome]]]] = []
        self.rows: list[Any] = []
        self.elsewhere_j: list[float] = []
        self.bills: list[Callable[[Sequence[SampleOutcome]], None]] = []

    queued_s = 0.0

    def predicted_wait_s(self) -> float:
        return self.queued_s

    def predicted_turn_s(self, tenant: str, num_samples: int) -> float:
        return self.predicted_wait_s()

    async def run(self, samples: Sequence[SampleCall], predicted_s: float, settle: Any) -> list[SampleOutcome]:
        done: asyncio.Future[list[SampleOutcome]] = asyncio.get_running_loop().create_future()
        self.rows += [sample.inputs for sample in samples]
        self.elsewhere_j += [sample.elsewhere_j for sample in samples]
        pictures = [
            sample.inputs["picture"] if isinstance(sample.inputs, dict) else sample.inputs for sample in samples
        ]
        self.sent.append(("".join(chr(cast(Any, picture)[0, 0, 0]) for picture in pictures), done))
        self.bills.append(settle)
        outcomes = await done
        settle(outcomes)
        return outcomes

    @property
    def images(self) -> list[str]:
        return [images for images, _ in self.sent]

    def end(self, number: int, outcome: SampleOutcome | ServingError = ANSWER) -> None:
        images, done = self.sent[number]
        if isinstance(outcome, ServingError):
            done.set_exception(outcome)
        else:
            done.set_result([outcome] * len(images))


class World:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(UnaryRequests, "_choose", lambda *_: CHOICE)
        self.media, self.results, self.dispatcher = Media(), MemoryResults(), Dispatcher()
        model = ServedModel(card=make_card(MODEL), points=cast(Any, POINTS), dispatcher=cast(Any, self.dispatcher))
        self.shared = 0
        self.spent: list[EnergySpent] = []
        limits = PipelineLimits(max_in_flight=8, default_deadline_s=5.0)
        self.max_in_flight: dict[str, int | None] = {}
        self.pipeline = Pipeline(
            cast(Any, self.results), limits, self.max_in_flight, tell=self._hear, models=(MODEL, "other")
        )
        self.service = UnaryRequests({MODEL: model}, cast(Any, self.media), self.pipeline, max_images=8)

    def _hear(self, event: object) -> None:
        if isinstance(event, EnergySpent):
            self.spent.append(event)
        self.shared += type(event).__name__ == "ResultShared"

    def ask(self, images: str = "xy", tenant: str = "acme", **budget: Any) -> asyncio.Task[UnaryReply]:
        request = UnaryRequest(
            request_id="r",
            surface=Surface.HTTP_CLASSIFY,
            tenant=tenant,
            model=MODEL,
            images=tuple(ImageInput(encoded=image.encode()) for image in images),
            budget=Budget(**budget),
        )
        return asyncio.create_task(self.service.answer(request))

    async def sent(self, number: int) -> None:
        await until(lambda: len(self.dispatcher.sent) == number)

    async def check_nothing_is_left(self) -> None:
        assert (self.pipeline.in_flight, self.results.open) == (0, {})
        assert not self.pipeline._flights


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


async def settled(*tasks: Awaitable[UnaryReply]) -> list[str]:
    """What the report says of the cache, or what went wrong."""
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    return [end.report.cache if isinstance(end, UnaryReply) else type(end).__name__ for end in ends]


# -- accounts --------------------------------------------------------------------------------------------------------


async def test_empty_account_is_turned_away_before_an_image_is_decoded(world: World) -> None:
    world.results.is_empty = True
    with pytest.raises(QuotaExceeded):
        await world.ask()
    assert world.media.callers == []


async def test_images_are_decoded_on_the_account_of_their_tenant(world: World) -> None:
    task = world.ask()
    await world.sent(1)
    world.dispatcher.end(0)
    assert (await task).report.energy_j == 4.0
    assert {caller.tenant for caller in world.media.callers} == {"acme"}
    assert world.results.settled == [Cost(4.0, 1.0)]


async def test_who_leaves_is_settled_by_the_dispatcher_and_by_nobody_else(world: World) -> None:
    task = world.ask()
    await world.sent(1)
    task.cancel()
    await asyncio.wait([task])
    assert world.results.settled == []
    for _ in range(2):  # the first bill counts
        world.dispatcher.bills[0]([ANSWER._replace(compute_s=0.25, joules=1.5)])
    assert world.results.settled == [Cost(1.5, 0.25)]


async def test_what_was_lowered_is_in_the_report(world: World) -> None:
    task = world.ask(degraded=("priority",))
    await world.sent(1)
    world.dispatcher.end(0)
    assert (await task).report.degraded == ("priority",)


async def test_requests_of_all_tasks_are_bounded_together(world: World) -> None:
    async with world.pipeline.admitted("chatting", "chat", lambda: 0.0, deadline_s=math.inf):
        tasks = [world.ask(str(number)) for number in range(7)]
        await world.sent(7)
        assert not world.service.is_ready()
        with pytest.raises(QueueFull, match="serves 8 requests; limit is 8"):
            await world.ask("z")
        for number in range(7):
            world.dispatcher.end(number)
        await asyncio.gather(*tasks)
    await world.check_nothing_is_left()


async def test_tenant_with_a_bound_of_its_own_is_held_to_it_and_nobody_else_is(world: World) -> None:
    world.max_in_flight |= {"acme": 2, "rival": None}
    tasks = [world.ask(str(number)) for number in range(2)]
    await world.sent(2)
    with pytest.raises(TooManyInFlight, match=r"2 requests of tenant 'acme'; limit is 2 \(max_in_flight\)") as caught:
        await world.ask("z")
    assert caught.value.retry_after_s
    assert world.service.is_ready(), "the gateway has room"
    tasks += [world.ask(str(number), tenant=tenant) for tenant in ("rival", "other") for number in (4, 5)]
    await world.sent(6)
    world.max_in_flight["acme"] = 3  # it may change
    tasks.append(world.ask("w"))
    await world.sent(7)
    for number in range(7):
        world.dispatcher.end(number)
    await asyncio.gather(*tasks)
    await world.check_nothing_is_left()
    world.max_in_flight["acme"] = 1
    last = world.ask("v")
    await world.sent(8)
    world.dispatcher.end(7)
    await last


async def test_first_row_tells_once_what_other_models_served_the_tenant(world: World) -> None:
    world.pipeline.spent("other", "acme", "default", Spent(2.0, 5.0))
    tasks = [world.ask("xy"), world.ask("z")]
    await world.sent(2)
    assert world.dispatcher.elsewhere_j == [pytest.approx(5.0, rel=0.01), 0.0, 0.0]
    for number in range(2):
        world.dispatcher.end(number)
    await asyncio.gather(*tasks)


# -- the last exit ---------------------------------------------------------------------------------------------------


@pytest.fixture
def deep(world: World, monkeypatch: pytest.MonkeyPatch) -> list[Budget]:
    """Half of acme's rows may reach the last exit. Budgets as they are planned with."""
    budgets: list[Budget] = []
    monkeypatch.setattr(
        UnaryRequests, "_choose", lambda _, model, request, *__: budgets.append(request.budget) or CHOICE
    )
    world.service = UnaryRequests(
        world.service._models, cast(Any, world.media), world.pipeline, max_images=8, max_deep_share={"acme": 0.5}
    )
    return budgets


async def classified(world: World, images: str, exit_index: int, tenant: str = "acme") -> UnaryReply:
    number = len(world.dispatcher.sent)
    task = world.ask(images, tenant=tenant)
    await world.sent(number + 1)
    world.dispatcher.end(number, ANSWER._replace(exit_index=exit_index))
    return await task


async def test_tenant_over_its_share_of_deep_rows_leaves_before_the_last_exit_and_is_told(
    world: World, deep: list[Budget]
) -> None:
    last = world.service.models()[0].io.num_exits
    curbed = {f"exit_{last - 1}": 0.0}
    reply = await classified(world, "a", last - 2)
    assert (deep[-1].settings, reply.report.degraded) == (curbed, ("deep_share",)), "nothing has been saved up yet"
    reply = await classified(world, "b", last - 1)
    assert (deep[-1].settings, reply.report.degraded) == ({}, ())
    await classified(world, "c", last - 2)
    assert deep[-1].settings == curbed, "one of two was deep"
    running = world.ask("d")  # it may go deep
    await world.sent(4)
    await classified(world, "e", last - 2)
    assert [budget.settings for budget in deep[-2:]] == [{}, curbed], "what runs counts as deep"
    assert (await classified(world, "f", last - 1, tenant="rival")).report.degraded == ()
    world.dispatcher.end(3, ANSWER._replace(exit_index=0))
    await running
    await classified(world, "g", 0)
    assert deep[-1].settings == {}, "and no more once it has left early"


async def test_share_of_deep_rows_is_no_less_for_requests_that_failed(world: World, deep: list[Budget]) -> None:
    last = world.service.models()[0].io.num_exits
    await classified(world, "a", last - 2)
    world.results.burst_s = 0.0
    for image in "bcd":
        with pytest.raises(QuotaExceeded):
            await world.ask(image)
    world.results.burst_s = 1e9
    await classified(world, "e", last - 1)
    assert deep[-1].settings == {}


async def test_floor_that_nothing_but_the_last_exit_keeps_is_refused_with_the_limit(
    world: World, deep: list[Budget], monkeypatch: pytest.MonkeyPatch
) -> None:
    def choose(_: UnaryRequests, *__: object) -> Any:
        raise BudgetInfeasible("quality 0.8 under 0.9")

    monkeypatch.setattr(UnaryRequests, "_choose", choose)
    with pytest.raises(DeepShareSpent, match=r"50% may reach the last exit \(max_deep_share\).*under 0.9") as caught:
        await world.ask("a", quality_floor=0.9)
    assert caught.value.retry_after_s
    with pytest.raises(BudgetInfeasible):
        await world.ask("a", tenant="rival", quality_floor=0.9)


# -- equal requests under way ----------------------------------------------------------------------------------------


async def test_equal_images_under_way_run_once_and_only_their_leader_pays(world: World) -> None:
    leader = world.ask("xy")
    await world.sent(1)
    followers = [world.ask("x"), world.ask("yx"), world.ask("xz")]
    await world.sent(2)
    assert world.dispatcher.images == ["xy", "z"]
    world.dispatcher.end(1)
    world.dispatcher.end(0)
    assert await settled(leader, *followers) == ["miss", "hit", "hit", "partial"]
    assert world.results.settled_s == [0.5, 1.0]
    assert world.shared == 4
    assert await settled(world.ask("zyx")) == ["hit"]
    await world.check_nothing_is_left()


async def test_the_same_image_twice_in_one_request_runs_once(world: World) -> None:
    task = world.ask("xxy")
    await world.sent(1)
    world.dispatcher.end(0)
    assert len((await task).items) == 3
    assert world.dispatcher.images == ["xy"]
    await world.check_nothing_is_left()


async def test_tenants_share_nothing(world: World) -> None:
    tasks = [world.ask("x"), world.ask("x", tenant="rival")]
    await world.sent(2)
    for number in range(2):
        world.dispatcher.end(number)
    assert await settled(*tasks) == ["miss", "miss"]


async def test_joules_that_a_replica_says_are_reported_charged_and_counted(world: World) -> None:
    task = world.ask()
    await world.sent(1)
    world.dispatcher.end(0)
    report = (await task).report
    assert (report.energy_j, report.energy_source) == (4.0, "nvml")
    assert [(one.model, one.tenant, one.point, one.source, one.joules) for one in world.spent] == [
        (MODEL, "acme", CHOICE.point.name, "nvml", 4.0)
    ]


async def test_without_a_reading_joules_are_unknown_and_the_declared_power_is_charged(world: World) -> None:
    task = world.ask()
    await world.sent(1)
    outcomes = [ANSWER, ANSWER._replace(joules=None)]
    world.dispatcher.sent[0][1].set_result(outcomes)
    report = (await task).report
    assert (report.energy_j, report.energy_source) == (None, "nvml")
    assert world.results.settled == [Cost(POINTS.watts * 1.0, 1.0)]
    assert [(one.source, one.joules) for one in world.spent] == [("estimate", POINTS.watts * 1.0)]


@pytest.mark.parametrize("how", ["leaves", "fails", "its sample fails", "was made worse"])
async def test_when_the_leader_has_nothing_to_give_one_of_the_others_takes_over(world: World, how: str) -> None:
    leader = world.ask("x")
    await world.sent(1)
    followers = [world.ask("x"), world.ask("x"), world.ask("x")]
    await until(lambda: len(world.media.callers) == 4)
    assert world.dispatcher.images == ["x"]
    match how:
        case "leaves":
            leader.cancel()
        case "fails":
            world.dispatcher.end(0, EngineFailed("no"))
        case "its sample fails":
            world.dispatcher.end(0, SampleFailure(EngineFailed("no"), 0.5))
        case _:
            world.dispatcher.end(0, ANSWER._replace(degraded=True))
    await world.sent(2)
    assert world.dispatcher.images == ["x", "x"]
    world.dispatcher.end(1)
    assert sorted(await settled(*followers)) == ["hit", "hit", "miss"]
    await asyncio.wait([leader])
    world.dispatcher.bills[0]([])
    await world.check_nothing_is_left()


async def test_a_follower_that_leaves_disturbs_nobody(world: World) -> None:
    leader = world.ask("x")
    await world.sent(1)
    leaving, staying = world.ask("x"), world.ask("x")
    await until(lambda: len(world.media.callers) == 3)
    leaving.cancel()
    await asyncio.wait([leaving])
    world.dispatcher.end(0)
    assert await settled(leader, staying) == ["miss", "hit"]
    assert world.dispatcher.images == ["x"]
    await world.check_nothing_is_left()


@pytest.mark.parametrize("urgent", [{"priority": Priority.HIGH}, {"latency_ms": 1000}], ids=str)
async def test_nobody_waits_for_what_is_less_urgent_than_itself(world: World, urgent: dict[str, Any]) -> None:
    first = world.ask("x")
    await world.sent(1)
    hurried = world.ask("x", **urgent)
    await world.sent(2)
    follower = world.ask("x", **urgent)
    await until(lambda: len(world.media.callers) == 3)
    world.dispatcher.end(0)
    assert await settled(first) == ["miss"]
    world.dispatcher.end(1)
    assert await settled(hurried, follower) == ["miss", "hit"]
    await world.check_nothing_is_left()


async def test_two_requests_that_each_lead_what_the_other_wants_end(world: World) -> None:
    first = world.ask("xy")
    await world.sent(1)
    second = world.ask("zx")
    await world.sent(2)
    first.cancel()
    third = world.ask("xz")
    world.dispatcher.end(1)
    await world.sent(3)
    world.dispatcher.end(2)
    assert len(await settled(second, third)) == 2
    assert (second.result().report.cache, third.result().report.cache).count("miss") <= 1
    world.dispatcher.bills[0]([])
    await world.check_nothing_is_left()


# -- words, noise and pictures ---------------------------------------------------------------------------------------


def painting(world: World, **columns: Any) -> asyncio.Task[UnaryReply]:
    """Ask a model that makes pictures of pictures, words and noise."""
    form = ImageIO(takes_picture=True, takes_prompt=True, is_seeded=True, max_side=64, max_prompt_chars=9)
    points = POINTS
    card = make_image_card("painter", form)
    served = ServedModel(
        card=card,
        points=cast(Any, points),
        dispatcher=cast(Any, world.dispatcher),
        words=lambda prompt: np.frombuffer(prompt.encode(), np.uint8),
    )
    service = UnaryRequests({"painter": served}, cast(Any, world.media), world.pipeline, max_images=8)
    image = ImageInput(encoded=b"x")
    asked = {"images": (image, image), "prompts": ("a", "a"), "seeds": (1, 2), **columns}
    request = UnaryRequest(
        request_id="r", surface=Surface.HTTP_IMAGES, tenant="acme", model="painter", budget=Budget(), **asked
    )
    return asyncio.create_task(service.answer(request))


async def test_rows_are_put_together_by_name_and_one_picture_is_decoded_once(world: World) -> None:
    task = painting(world)
    await world.sent(1)
    world.dispatcher.end(0)
    assert len((await task).items) == 2
    assert len(world.media.callers) == 1
    assert [sorted(row) for row in world.dispatcher.rows] == [["picture", "prompt", "seed"]] * 2
    assert [int(row["seed"]) for row in world.dispatcher.rows] == [1, 2]
    assert await settled(painting(world), painting(world, seeds=(2, 1))) == ["hit", "hit"]


async def test_what_was_drawn_is_not_kept(world: World) -> None:
    tasks = [painting(world, is_drawn=True), painting(world, is_drawn=True)]
    await world.sent(2)
    for number in range(2):
        world.dispatcher.end(number)
    assert await settled(*tasks) == ["miss", "miss"]


@pytest.mark.parametrize(
    ("columns", "param"),
    [
        ({"images": ()}, "images"),
        ({"prompts": ()}, "prompt"),
        ({"seeds": (1,)}, "seed"),
        ({"prompts": ("a" * 10, "b")}, "prompt"),
    ],
)
async def test_columns_that_do_not_fit_are_refused(world: World, columns: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await painting(world, **columns)
    assert caught.value.param == param


# -- jobs ------------------------------------------------------------------------------------------------------------


def _planning(world: World, monkeypatch: pytest.MonkeyPatch, latency_s: float, side: int = 4) -> UnaryRequests:
    """A model whose rows of the largest size take ``latency_s`` each, alone, and half of it in company."""
    monkeypatch.undo()
    cost = PointCost(latency_s={"rows": latency_s}, busy_s={"rows": latency_s / 2}, watts=2.0)
    points = Points(
        points=(Point(name="depth=2", settings={"depth": 2}, cost=cost),),
        work=lambda settings, request=None: {"rows": 1.0},
        watts=2.0,
        checkpoint_sha256="0" * 64,
    )
    form = ImageIO(takes_picture=True, is_seeded=True, max_side=4096)
    served = ServedModel(card=make_image_card("painter", form), points=points, dispatcher=cast(Any, world.dispatcher))
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)

    async def prepare(data: bytes, *rest: Any) -> PreparedImage:
        world.media.callers.append(rest[-1])
        return PreparedImage(
            pixels=noise, content_sha256=b"0" * 32, original_size=(side, side), decode_ms=0.0, grid=None
        )

    monkeypatch.setattr(world.media, "prepare", prepare)
    return UnaryRequests({"painter": served}, cast(Any, world.media), world.pipeline, max_images=8)


def _rows(**budget: Any) -> UnaryRequest:
    image = ImageInput(encoded=b"x")
    return UnaryRequest(
        request_id="r", surface=Surface.HTTP_IMAGES, tenant="acme", model="painter", images=(image, image),
        seeds=(7, 8), budget=Budget(**budget),
    )  # fmt: skip


async def test_plan_of_a_job_has_the_picture_its_point_and_all_of_its_seconds(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = await _planning(world, monkeypatch, 8.0).plan_job(_rows(), 10.0)
    assert plan is not None
    assert (plan.point, plan.name, plan.seed, plan.num_steps) == ({"depth": 2}, "depth=2", 7, 1)
    assert (plan.predicted_s, plan.predicted_j) == (8.0, 16.0)
    assert plan.most == Cost(2.0 * plan.most_s, plan.most_s), "as dear as alone, once"
    assert plan.held_bytes == 2 * 3 * 4096 * 4096, "two rows of the largest size"
    assert (plan.request.count, plan.request.picture[:4]) == (2, b"\x89PNG")
    assert len(world.media.callers) == 1
    await world.check_nothing_is_left()


async def test_short_call_is_no_job_and_nothing_is_decoded_to_know_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = _planning(world, monkeypatch, 4.0)
    assert await service.plan_job(_rows(), 10.0) is None
    assert world.media.callers == []
    assert await service.plan_job(_rows(), 0.0) is not None


async def test_budget_of_a_job_is_its_own_and_not_that_of_a_waiting_call(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = _planning(world, monkeypatch, 8.0)  # the server's default deadline is 5 s
    assert await service.plan_job(_rows(latency_ms=13_000.0), 0.0) is not None  # 8 s, and 4 s for the other row
    with pytest.raises(BudgetInfeasible):
        await service.plan_job(_rows(latency_ms=11_000.0), 0.0)


# -- deadlines -------------------------------------------------------------------------------------------------------


async def test_answer_that_comes_after_the_deadline_is_not_given(world: World) -> None:
    now_s = [100.0]
    world.pipeline.clock = lambda: now_s[0]
    tasks = [world.ask(images, latency_ms=1000.0) for images in ("x", "y")]
    await world.sent(2)
    ends = []
    for number, after_s in enumerate((1.0, 1.1)):
        now_s[0] = 100.0 + after_s
        world.dispatcher.end(number)
        ends += await settled(tasks[number])
    assert ends == ["miss", "DeadlineExceeded"]
    assert world.results.settled_s == [0.5, 0.5], "what ran is charged"
    await world.check_nothing_is_left()


async def test_queue_that_is_longer_than_the_deadline_refuses_before_anything_is_decoded(world: World) -> None:
    world.dispatcher.queued_s = 6.0  # the default deadline is 5 s
    with pytest.raises(DeadlineUnreachable, match="retry in 1") as caught:
        await world.ask()
    assert caught.value.retry_after_s == pytest.approx(1.0, abs=0.2)
    assert world.media.callers == []
    await world.check_nothing_is_left()


# -- under load ------------------------------------------------------------------------------------------------------


class Bent(Bending):
    """As deep as it is told to be."""

    def __init__(self, now: float) -> None:
        super().__init__({"painter": limits_of(1.0)})
        self.now = now
        self.told: list[tuple[str, str, float, bool]] = []

    def depth(self, model: str, tenant: str, priority: Priority, queued_s: float, alone_s: float = 0.0) -> float:
        return self.now

    def planned(self, model: str, tenant: str, seconds: float, degradation: Any) -> None:
        self.told.append((model, tenant, seconds, degradation is not None))


def _bending(world: World, monkeypatch: pytest.MonkeyPatch) -> tuple[UnaryRequests, Bent]:
    """A model with a dear point and a cheap one."""
    service = _planning(world, monkeypatch, 8.0)
    model = service._models["painter"]
    points = tuple(
        Point(
            name=f"depth={depth}",
            settings={"depth": depth},
            cost=PointCost(latency_s={"rows": seconds}, busy_s={"rows": seconds}, watts=2.0),
            quality=quality,
        )
        for depth, seconds, quality in ((2, 4.0, 0.9), (1, 1.0, 0.8))
    )
    service._models = {"painter": replace(model, points=replace(model.points, points=points))}
    world.pipeline.bending = bent = Bent(1.0)
    return service, bent


async def test_answer_under_load_says_what_was_given_up_and_why(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    service, bent = _bending(world, monkeypatch)
    task = asyncio.create_task(service.answer(_rows()))
    await world.sent(1)
    world.dispatcher.end(0)
    report = (await task).report
    assert (report.operating_point, report.degraded) == ("depth=1", ("load",))
    assert report.degradation == Degradation(
        from_point="depth=2",
        to_point="depth=1",
        reasons=("load",),
        quality_before=0.9,
        quality_after=0.8,
        energy_j_before=16.0,
        energy_j_after=4.0,
    )
    assert bent.told == [("painter", "acme", 2.0, True)]


async def test_answer_that_was_bent_is_not_given_to_a_request_that_is_not(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, bent = _bending(world, monkeypatch)
    caches = []
    for number, (depth, has_to_run) in enumerate(((1.0, True), (0.0, True), (0.0, False), (1.0, False))):
        bent.now = depth
        task = asyncio.create_task(service.answer(_rows()))
        if has_to_run:
            await world.sent(number + 1)
            world.dispatcher.end(number)
        report = (await task).report
        caches.append((report.operating_point, report.cache))
    assert caches == [("depth=1", "miss"), ("depth=2", "miss"), ("depth=2", "hit"), ("depth=1", "hit")]


async def test_what_a_request_fixes_and_its_floor_stay_under_load(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, _ = _bending(world, monkeypatch)
    for number, budget in enumerate(({"settings": {"depth": 2}}, {"quality_floor": 0.85})):
        task = asyncio.create_task(service.answer(_rows(**budget)))
        if number == 0:  # the other is the same answer
            await world.sent(1)
            world.dispatcher.end(0)
        report = (await task).report
        assert (report.operating_point, report.degraded, report.degradation) == ("depth=2", (), None)
