"""Hostile bodies, how answers to them are read, and what allowed parameters can cost."""

from __future__ import annotations

import json

import httpx
import pytest

from loadtest.adversarial.dearest import dearest
from loadtest.adversarial.requests import IMAGES, VIDEOS, hostile, send
from models.io import ClipRequest, ImageRequest
from models.registry import find


def test_every_body_differs_and_says_what_it_is() -> None:
    made = list(hostile())
    assert min(sum(one.path == path for one in made) for path in (VIDEOS, IMAGES)) > 60
    assert len({(one.path, one.body) for one in made}) == len(made)
    assert {one.path for one in made} == {VIDEOS, IMAGES}
    assert all(": " in one.what for one in made)


def test_numbers_that_are_none_are_written_as_such() -> None:
    bodies = {one.what: one.body for one in hostile() if one.path == IMAGES}
    assert b'"guidance_scale": NaN' in bodies["vireo.settings.guidance_scale: NaN"]
    assert b'"latency_ms": 1e999' in bodies["vireo.latency_ms: 1e999"]
    plain = json.loads(bodies["n: 1000000"])
    assert (plain["n"], plain["model"]) == (1_000_000, "dit-moe-nano")


def test_an_outcome_is_a_refusal_only_with_a_code() -> None:
    answers = iter(
        [
            httpx.Response(400, json={"error": {"code": "invalid_request"}}),
            httpx.Response(400, text="no"),
            httpx.Response(200, json={"error": {"code": "x"}}),
            httpx.Response(500, json={"error": {"code": "internal"}}),
        ]
    )

    def answer(request: httpx.Request) -> httpx.Response:
        if (response := next(answers, None)) is None:
            raise httpx.ConnectError("gone", request=request)
        return response

    with httpx.Client(base_url="http://test", transport=httpx.MockTransport(answer)) as client:
        outcomes = list(send(client, list(hostile())[:5]))
    assert [one.is_refused for one in outcomes] == [True, False, False, False, False]
    assert [one.status for one in outcomes] == [400, 400, 200, 500, 0]


def test_the_dearest_picture_is_many_steps_of_many_pictures() -> None:
    family, variant = find("dit-moe-nano")
    requests = [ImageRequest(width=64, height=64, prompt="a green 7", count=count) for count in (1, 4)]
    worst = dearest(family, variant, requests)
    assert worst.settings["num_inference_steps"] == 250
    assert worst.request.count == 4
    assert worst.amplification == pytest.approx(4 * 250 / 20)


def test_the_dearest_clip_is_one_that_its_sampler_takes() -> None:
    family, variant = find("vdit-nano")
    worst = dearest(family, variant, [ClipRequest(num_frames=frames) for frames in variant.io.frame_counts])
    assert worst.settings["num_inference_steps"] == 100
    assert worst.request.num_frames == 61
    assert worst.amplification > 10
