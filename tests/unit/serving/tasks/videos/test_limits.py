"""Limits of a known checkpoint; more refusals are in the tests of the jobs and of the engines."""

from __future__ import annotations

from typing import Any

import pytest

from models.contract import Point
from models.io import ClipRequest
from models.registry import find
from serving.errors import UnsupportedVideo
from serving.tasks.videos.limits import ClipLimits


def check(num_frames: int = 29, **point: Any) -> Point:
    family, variant = find("vdit-nano")
    limits = ClipLimits(family=family, variant=variant)
    return limits.check(limits.io.settled(ClipRequest(prompt="a ball", num_frames=num_frames)), point)


def test_limits_of_the_nano_model_pass_its_defaults() -> None:
    teacher = {"sampler": "ddim", "num_inference_steps": 20, "guidance_scale": 3.0, "attention": "dense"}
    student = {"sampler": "consistency", "num_inference_steps": 4, "guidance_scale": 1.0, "attention": "dense"}
    for point in (teacher, student):
        assert check(**point) == point
    with pytest.raises(UnsupportedVideo, match="guidance_scale is 4; consistency has its guidance") as caught:
        check(**(student | {"guidance_scale": 4.0}))
    assert caught.value.param == "guidance_scale"
    with pytest.raises(UnsupportedVideo, match="29"):
        check(num_frames=93, **teacher)


@pytest.mark.parametrize("point", [{"attention": "ras:0.5"}, {"cache": "first_block:0.1"}])
def test_what_several_ranks_cannot_do_together_is_refused_before_it_is_queued(point: dict[str, str]) -> None:
    family, variant = find("diffusers:wan-t2v")
    alone, spread = (ClipLimits(family=family, variant=variant, ranks=ranks) for ranks in (1, 2))
    clip = alone.io.settled(ClipRequest(prompt="a ball"))
    assert alone.check(clip, point).items() >= point.items()
    with pytest.raises(UnsupportedVideo) as caught:
        spread.check(clip, point)
    assert caught.value.param == next(iter(point))
    assert spread.check(clip, {})
