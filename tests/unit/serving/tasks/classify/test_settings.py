"""What a request sets of a classifier's knobs: what is run, and what is reserved for it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, cast

import pytest

from models import registry
from serving.config import ModelSettings, resolve_model
from serving.delivery.pipeline import Pipeline, PipelineLimits
from serving.delivery.unary.service import ServedModel, UnaryRequests
from serving.domain import Budget, ClassifyRequest, ImageInput, Surface
from serving.errors import BudgetInfeasible
from serving.operating_points import points_of
from tests.support.fake_service import make_card
from tests.unit.serving.test_unary_service import ANSWER, Media, MemoryResults

MODEL = "dyn-perceiver-nano"
FAMILY, _ = registry.find(MODEL)
POINTS = points_of(resolve_model(ModelSettings(id=MODEL)))
CARD = replace(make_card(MODEL), knobs=FAMILY.knobs)


class Recorder:
    """A dispatcher that answers at once."""

    def __init__(self) -> None:
        self.samples: list[Any] = []

    def predicted_wait_s(self) -> float:
        return 0.0

    def predicted_turn_s(self, tenant: str, num_samples: int) -> float:
        return self.predicted_wait_s()

    async def run(self, samples: list[Any], predicted_s: float, settle: Any) -> list[Any]:
        self.samples += samples
        outcomes = [ANSWER for _ in samples]
        settle(outcomes)
        return outcomes


def ask(dispatcher: Recorder, **budget: Any) -> Any:
    served = ServedModel(card=CARD, points=POINTS, dispatcher=cast(Any, dispatcher))
    pipeline = Pipeline(cast(Any, MemoryResults()), PipelineLimits(max_in_flight=8, default_deadline_s=60.0))
    service = UnaryRequests({MODEL: served}, cast(Any, Media()), pipeline, max_images=8)
    request = ClassifyRequest(
        request_id="r",
        surface=Surface.HTTP_CLASSIFY,
        tenant="acme",
        model=MODEL,
        images=(ImageInput(encoded=b"x"),),
        budget=Budget(**budget),
    )
    return asyncio.run(service.answer(request))


def test_settings_reach_the_replica_and_the_report() -> None:
    dispatcher = Recorder()
    reply = ask(dispatcher, settings={"exit_1": 0.0, "exit_2": 0.0})
    (sample,) = dispatcher.samples
    assert sample.thresholds[:2] == (0.0, 0.0)
    assert reply.report.operating_point.startswith("exit_1=0,exit_2=0,exit_3=")


def test_floor_that_no_measurement_promises_is_refused() -> None:
    with pytest.raises(BudgetInfeasible):
        ask(Recorder(), settings={"exit_1": 0.0}, quality_floor=0.9999)
