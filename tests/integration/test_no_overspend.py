"""Whatever comes at once, and however wrong predictions are: what a tenant spends is what it was allowed, and at most
what one request was over its prediction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import numpy as np
import pytest

from schedulers.admission import Cost, Factors
from schedulers.cost import CostModel, Price
from schedulers.plan import Cost as PointCost
from schedulers.plan import Point
from serving.config import from_mapping, resolve
from serving.delivery.pipeline import Pipeline, PipelineLimits
from serving.delivery.unary.service import ServedModel, UnaryRequests
from serving.delivery.unary.wire import SampleAnswer, SampleCall, SampleOutcome
from serving.domain import ImageInput, Surface, UnaryRequest
from serving.errors import QuotaExceeded
from serving.media.limits import MediaLimits
from serving.media.prepare import PreparedImage
from serving.operating_points import Points
from serving.stores.results import ResultStore
from tests.support.fake_service import make_card
from tests.support.waiting import until

WATTS, BURST_J = 2.0, 0.1
MANY = 1e4
SHARE_S, STAGE_S = 0.0005, 0.001
"""Of a row in a large batch that leaves early, and of one of the four stages of a row alone."""
MOST_S = 4 * STAGE_S
MOST_J = WATTS * MOST_S
NUM_PARALLEL = 60


class Media:
    """Every image is new."""

    limits = MediaLimits()

    def __init__(self) -> None:
        self.num_prepared = 0

    async def prepare(self, data: bytes, model: str, budget: object, caller: object) -> PreparedImage:
        self.num_prepared += 1
        pixels, name = np.zeros((4, 4, 3), np.uint8), str(self.num_prepared).encode().ljust(32)
        return PreparedImage(pixels=pixels, content_sha256=name, original_size=(4, 4), decode_ms=0.0, grid=None)


class Dispatcher:
    """Rows that all stay to the last exit, on a machine so many times as slow as the one that was measured, which takes
    so many times the power that was declared."""

    def __init__(self, slowness: float, power: float = 1.0) -> None:
        self.taken_s = slowness * 4 * STAGE_S
        self.taken_j = power * WATTS * self.taken_s
        self.spent_j = self.spent_s = 0.0
        self.num_running = 0
        self.may_end = asyncio.Event()

    def predicted_wait_s(self) -> float:
        return 0.0

    def predicted_turn_s(self, tenant: str, num_samples: int) -> float:
        return self.predicted_wait_s()

    async def run(self, samples: Sequence[SampleCall], predicted_s: float, settle: Any) -> list[SampleOutcome]:
        self.num_running += 1
        await self.may_end.wait()
        self.num_running -= 1
        self.spent_j += self.taken_j * len(samples)
        self.spent_s += self.taken_s * len(samples)
        outputs = {"probabilities": ("<f4", (1,), b"\0\0\x80\x3f")}
        row = SampleAnswer(outputs, 3, False, 0.0, self.taken_s, self.taken_j, "nvml")
        settle([row] * len(samples))
        return [row] * len(samples)


@asynccontextmanager
async def made_results(url: str, name: str, burst_j: float, burst_s: float = MANY) -> AsyncIterator[ResultStore]:
    tenant = {
        "name": f"t{abs(hash(name))}",
        "joules_per_s": 1e-9,
        "burst_j": burst_j,
        "seconds_per_s": 1e-9,
        "burst_s": burst_s,
    }
    redis = {"url": url, "timeout_s": 5.0, "secret": "s" * 32}
    results = ResultStore(resolve(from_mapping({"redis": redis, "tenants": [tenant]})))
    assert await results.start()
    yield results
    await results.stop()


@pytest.fixture
async def results(url: str, request: pytest.FixtureRequest) -> AsyncIterator[ResultStore]:
    async with made_results(url, request.node.name, BURST_J) as results:
        yield results


def make_service(results: ResultStore, dispatcher: Dispatcher) -> UnaryRequests:
    busy = PointCost(latency_s={}, busy_s={"rows": SHARE_S}, watts=WATTS)
    price = Price(seconds={"rows": {1: STAGE_S}}, row={"rows": 1.0})
    points = Points(
        points=(Point(name="early", settings={"exit_1": 0.5, "exit_2": 0.5, "exit_3": 0.5}, cost=busy, quality=0.9),),
        work=lambda settings, request=None: {"rows": 1.0},
        watts=WATTS,
        checkpoint_sha256="c" * 64,
        cost_model=CostModel(dict.fromkeys(range(4), price), watts=WATTS),
    )
    model = ServedModel(card=make_card("m"), points=points, dispatcher=cast(Any, dispatcher))
    pipeline = Pipeline(results, PipelineLimits(max_in_flight=1000, default_deadline_s=30.0))
    return UnaryRequests({"m": model}, cast(Any, Media()), pipeline, max_images=8)


async def parallel(service: UnaryRequests, dispatcher: Dispatcher, tenant: str, count: int = NUM_PARALLEL) -> int:
    """How many of so many requests were answered; the others were over the quota. None ends before all have begun."""

    def ask() -> asyncio.Task[Any]:
        image = ImageInput(encoded=b"x")
        request = UnaryRequest(request_id="r", surface=Surface.HTTP_CLASSIFY, tenant=tenant, model="m", images=(image,))
        return asyncio.create_task(service.answer(request))

    tasks = [ask() for _ in range(count)]
    await until(lambda: sum(task.done() for task in tasks) + dispatcher.num_running == count)
    dispatcher.may_end.set()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    dispatcher.may_end.clear()
    refused = [end for end in ends if isinstance(end, BaseException)]
    assert all(isinstance(error, QuotaExceeded) for error in refused), refused
    return count - len(refused)


async def settled(results: ResultStore) -> None:
    await until(lambda: not results._background)


def tenant_of(results: ResultStore) -> str:
    return next(name for name in results._limits if name != "local")


@pytest.mark.parametrize("slowness", [0.5, 1.0, 5.0, 20.0])
async def test_parallel_requests_spend_no_more_than_there_is(results: ResultStore, slowness: float) -> None:
    dispatcher = Dispatcher(slowness)
    service, tenant = make_service(results, dispatcher), tenant_of(results)
    num_answered = 0
    for _ in range(5):
        num_answered += await parallel(service, dispatcher, tenant)
        await settled(results)
    error_j = max(0.0, (slowness - 1.0) * MOST_J)
    assert dispatcher.spent_j <= BURST_J + error_j
    assert num_answered >= 0.5 * BURST_J / (slowness * MOST_J), "what there is can be spent"


@pytest.mark.parametrize("num_fitting", [80, 600])
@pytest.mark.parametrize(("slowness", "power"), [(1.0, 67.0), (1.0, 50.0), (50.0, 1 / 50), (0.5, 100.0)])
async def test_joules_may_be_far_off_where_seconds_are_right_and_seconds_where_joules_are(
    url: str, request: pytest.FixtureRequest, slowness: float, power: float, num_fitting: int
) -> None:
    """The account holds as many requests as predicted, of both kinds."""
    dispatcher, wrong = Dispatcher(slowness, power), max(slowness, slowness * power)
    name, burst_j, burst_s = request.node.name, num_fitting * MOST_J, num_fitting * MOST_S
    async with made_results(url, name, burst_j, burst_s) as results:
        service, tenant = make_service(results, dispatcher), tenant_of(results)
        num_answered = 0
        for _ in range(8):
            num_answered += await parallel(service, dispatcher, tenant)
            await settled(results)
    assert dispatcher.spent_j <= burst_j + max(0.0, dispatcher.taken_j - MOST_J)
    assert dispatcher.spent_s <= burst_s + max(0.0, dispatcher.taken_s - MOST_S)
    assert num_answered >= 0.5 * num_fitting / wrong, "what there is can be spent"


async def test_one_that_may_take_more_than_there_is_runs_alone_and_gives_back(results: ResultStore) -> None:
    dispatcher = Dispatcher(1.0)
    service, tenant = make_service(results, dispatcher), tenant_of(results)
    before = await results.reserve(tenant, Cost(0.02, 0.0), overrun=Factors(joules=8.0))
    assert before.cost is not None
    assert before.cost.joules == pytest.approx(BURST_J)
    assert await parallel(service, dispatcher, tenant, 3) == 0
    before.settle(0.02, 0.0)
    await settled(results)
    assert await parallel(service, dispatcher, tenant, 1) == 1
