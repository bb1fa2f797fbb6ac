"""Limits of a known checkpoint; more refusals are in the contract of the engines."""

from __future__ import annotations

from dataclasses import replace

import pytest

from models.registry import find
from serving.errors import UnsupportedVideo
from serving.tasks.videos.limits import ClipLimits
from tests.support.video_models import video_settings


def test_limits_of_the_nano_model_pass_its_defaults() -> None:
    family, variant = find("vdit-nano")
    limits = ClipLimits(family=family, variant=variant)
    teacher = video_settings(width=64, height=64, num_frames=29, sampler="ddim", num_steps=20)
    student = video_settings(
        width=64, height=64, num_frames=29, sampler="consistency", num_steps=4, variant="student", guidance_scale=1.0
    )
    for settings in (teacher, student):
        assert limits.check(settings) == settings.point
    with pytest.raises(UnsupportedVideo, match="guidance_scale is 4; consistency has its guidance") as caught:
        limits.check(replace(student, guidance_scale=4.0))
    assert caught.value.param == "guidance_scale"
    with pytest.raises(UnsupportedVideo, match="29"):
        limits.check(video_settings(width=64, height=64, num_frames=93, sampler="ddim", num_steps=20))
