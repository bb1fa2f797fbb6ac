"""Limits of a known checkpoint; refusals are in the contract of the engines."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest

from models.families.vdit.spec import get_video_spec
from serving.errors import UnsupportedVideo
from serving.replica.video.attention_setting import AttentionSetting, parse_attention
from serving.replica.video.limits import VideoLimits, latent_frames
from serving.tasks.videos.domain import AttentionKind
from tests.support.video_models import video_settings


def test_limits_of_the_nano_model_pass_its_defaults_and_travel() -> None:
    limits = VideoLimits.of_model(get_video_spec("vdit-nano"))
    teacher = video_settings(width=64, height=64, num_frames=29, sampler="ddim", num_steps=20)
    student = video_settings(
        width=64, height=64, num_frames=29, sampler="consistency", num_steps=4, variant="student", guidance_scale=1.0
    )
    for settings in (teacher, student):
        assert pickle.loads(pickle.dumps(limits)).check(settings).kind is AttentionKind.DENSE
    with pytest.raises(
        UnsupportedVideo, match="guidance_scale is 4; consistency has its guidance in its weights"
    ) as caught:
        limits.check(replace(student, guidance_scale=4.0))
    assert caught.value.param == "guidance_scale"
    with pytest.raises(UnsupportedVideo, match="29"):
        limits.check(video_settings(width=64, height=64, num_frames=93, sampler="ddim", num_steps=20))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dense", AttentionSetting(kind=AttentionKind.DENSE)),
        ("tile:2:6", AttentionSetting(kind=AttentionKind.TILE, references=2, others=6)),
        ("adaspa:0.8", AttentionSetting(kind=AttentionKind.ADASPA, amount=0.8)),
        ("ras:0.5", AttentionSetting(kind=AttentionKind.RAS, amount=0.5)),
    ],
)
def test_attention_is_read_as_it_is_written(text: str, expected: AttentionSetting) -> None:
    assert parse_attention(text) == expected
    assert expected.has_schedule == text.startswith(("adaspa", "ras"))


@pytest.mark.parametrize(
    "text", ["", "dense:", "tile", "tile:a:b", "tile:1:-1", "adaspa", "adaspa:-0.1", "ras:1.1", "ras:inf"]
)
def test_attention_of_no_known_form_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(UnsupportedVideo, match="use dense, tile:K") as caught:
        parse_attention(text)
    assert caught.value.param == "attention"


@pytest.mark.parametrize(("frames", "latent"), [(1, 1), (5, 2), (29, 8), (93, 24)])
def test_first_frame_stands_alone_and_each_four_after_it_make_one(frames: int, latent: int) -> None:
    assert latent_frames(frames) == latent
