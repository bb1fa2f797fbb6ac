"""Every bad input, on every surface that can carry it: a typed error, and neighbours that are served."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from grpc import StatusCode
from PIL import Image

from serving import errors
from serving.domain import Surface
from serving.errors import ServingError
from serving.front.status import TABLE
from serving.limits import IngressLimits
from tests.support import image_cases
from tests.support.clients import GOOD_LABEL, GOOD_PNG, SURFACES, Ask, FrontDoor, Outcome
from tests.support.fake_service import FakeService
from tests.support.media_files import bad_files, encode, exif_orientation, gradient, grey16_png

BAD_FILES = bad_files()
STATUS_OF_CODE = {cls.code: status for cls, status in TABLE.items()}
UNUSUAL_FILES = {
    "cmyk": encode(Image.fromarray(gradient(40, 50)).convert("CMYK"), "JPEG"),
    "exif_rotated": encode(gradient(40, 50), "JPEG", exif=exif_orientation(6)),
    "alpha": encode(Image.fromarray(gradient(40, 50)).convert("RGBA")),
    "palette": encode(Image.fromarray(gradient(40, 50)).convert("P")),
    "grey16": grey16_png(np.full((8, 9), 40_000, np.uint16)),
    "webp": encode(gradient(40, 50), "WEBP"),
}
NUMBERS: dict[str, float] = {
    "nan": math.nan,
    "infinite": math.inf,
    "minus_infinite": -math.inf,
    "negative": -1.0,
    "zero": 0.0,
    "huge": 1e300,
}


@pytest.fixture(params=sorted(SURFACES))
def surface(request: pytest.FixtureRequest) -> Any:
    return SURFACES[request.param]


def assert_refused(outcome: Outcome, code: str) -> None:
    assert outcome.error == code, outcome
    status = STATUS_OF_CODE[code]
    if isinstance(outcome.status, StatusCode):
        assert outcome.status == status.grpc
    elif outcome.status:
        assert outcome.status == status.http
    assert len(outcome.message) > 15


@pytest.mark.parametrize("name", sorted(BAD_FILES))
async def test_bad_image_among_good_ones_fails_alone(name: str, surface: Any) -> None:
    data, code = BAD_FILES[name]
    outcome = await surface(FrontDoor(), Ask([GOOD_PNG, data, GOOD_PNG]))
    assert outcome.error is None
    assert outcome.items == (GOOD_LABEL, code, GOOD_LABEL)


@pytest.mark.parametrize("name", sorted(BAD_FILES))
async def test_call_with_nothing_but_a_bad_image_fails_as_a_whole(name: str, surface: Any) -> None:
    data, code = BAD_FILES[name]
    door = FrontDoor()
    assert_refused(await surface(door, Ask([data, data])), code)
    assert (await surface(door, Ask([GOOD_PNG]))).items == (GOOD_LABEL,)


@pytest.mark.parametrize("name", sorted(UNUSUAL_FILES))
async def test_unusual_image_is_served(name: str, surface: Any) -> None:
    outcome = await surface(FrontDoor(), Ask([UNUSUAL_FILES[name]]))
    assert outcome.error is None
    assert outcome.items[0].startswith("class ")


@pytest.mark.parametrize("name", image_cases.SAME_PIXELS_AS)
async def test_harmless_metadata_changes_no_answer(name: str, surface: Any) -> None:
    twin = Ask([image_cases.load_twin(name)])
    assert (await surface(FrontDoor(), Ask([image_cases.load(name)]))).items == (await surface(FrontDoor(), twin)).items


BUDGETS = [
    (name, number)
    for name in ("latency_ms", "energy_j", "quality_floor")
    for number in sorted(NUMBERS)
    if (name, number) != ("quality_floor", "zero")
]


@pytest.mark.parametrize(("name", "number"), BUDGETS)
async def test_budget_that_is_no_sensible_number_is_refused_by_name(name: str, number: str, surface: Any) -> None:
    door = FrontDoor()
    outcome = await surface(door, Ask([GOOD_PNG], **{name: NUMBERS[number]}))
    assert_refused(outcome, "invalid_request")
    assert name in outcome.message
    assert "must be" in outcome.message or "should be" in outcome.message
    assert outcome.param in (None, f"vireo.{name}", f"vireo_{name}", f"parameters.vireo_{name}")
    assert all(request.model == "fake-nano" and request.budget.latency_ms is None for request in door.service.requests)


@pytest.mark.parametrize("top_k", [1001, 2**31])
async def test_top_k_over_the_limit_is_refused(top_k: int, surface: Any) -> None:
    outcome = await surface(FrontDoor(), Ask([GOOD_PNG], top_k=top_k))
    assert_refused(outcome, "invalid_request")
    assert "top_k" in outcome.message
    assert "1000" in outcome.message


async def test_top_k_beyond_the_number_of_classes_is_refused(surface: Any) -> None:
    outcome = await surface(FrontDoor(), Ask([GOOD_PNG], top_k=11))
    assert_refused(outcome, "invalid_request")
    assert "10 classes" in outcome.message


async def test_unknown_model_is_not_found(surface: Any) -> None:
    outcome = await surface(FrontDoor(), Ask([GOOD_PNG], model="no-such-model"))
    assert_refused(outcome, "model_not_found")
    assert "no-such-model" in outcome.message


async def test_a_hundred_images_are_too_many(surface: Any) -> None:
    door = FrontDoor()
    outcome = await surface(door, Ask([GOOD_PNG] * 100))
    assert_refused(outcome, "too_many_images")
    assert "64" in outcome.message
    assert all(len(request.images) == 1 for request in door.service.requests)


async def test_request_over_the_byte_limit_is_refused(surface: Any) -> None:
    door = FrontDoor(limits=IngressLimits(max_body_bytes=10_000))
    outcome = await surface(door, Ask([GOOD_PNG, bytes(20_000)]))
    assert_refused(outcome, "payload_too_large")
    assert "10000" in outcome.message
    assert (await surface(door, Ask([GOOD_PNG]))).items == (GOOD_LABEL,)


async def test_call_without_images_is_refused(surface: Any) -> None:
    assert_refused(await surface(FrontDoor(), Ask([])), "invalid_request")


ERRORS = [
    errors.QueueFull("the queue is full", retry_after_s=2.5),
    errors.DeadlineExceeded("the deadline passed"),
    errors.BudgetInfeasible("no operating point fits"),
    errors.EngineFailed("the model failed on this image"),
    errors.Draining("this replica is stopping"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.code)
async def test_error_of_the_service_reaches_the_caller(error: ServingError, surface: Any) -> None:
    service = FakeService(error=error, fails_on=lambda request: request.top_k == 2)
    assert_refused(await surface(FrontDoor(service), Ask([GOOD_PNG], top_k=2)), error.code)


async def test_internal_text_never_reaches_the_caller(surface: Any, capsys: pytest.CaptureFixture[str]) -> None:
    service = FakeService(error=RuntimeError("secret path"), fails_on=lambda request: request.top_k == 2)
    outcome = await surface(FrontDoor(service), Ask([GOOD_PNG], top_k=2))
    assert_refused(outcome, "internal_error")
    assert "secret" not in outcome.message
    assert "secret" in "".join(capsys.readouterr()), "the operator must find it in the log"


async def test_same_pixels_and_budget_reach_the_service_from_every_surface(surface: Any) -> None:
    door = FrontDoor()
    ask = Ask([GOOD_PNG], top_k=3, latency_ms=50.0, energy_j=2.0, quality_floor=0.5)
    assert (await surface(door, ask)).error is None
    request = next(request for request in door.service.requests if request.top_k == 3)
    assert request.images[0].encoded == GOOD_PNG
    assert (request.budget.latency_ms, request.budget.energy_j, request.budget.quality_floor) == (50.0, 2.0, 0.5)
    assert request.tenant == "local"
    assert isinstance(request.surface, Surface)
    assert request.request_id
