"""The registry of video models refuses by name what a checkpoint was not made for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from models.families.vdit.spec import VIDEO_MODELS, get_video_spec

NANO = get_video_spec("vdit-nano")


def test_unknown_model_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'vdit-huge'.*vdit-nano.*vdit-osp-29x720p"):
        get_video_spec("vdit-huge")


def test_length_that_was_not_trained_is_refused_with_those_that_were() -> None:
    with pytest.raises(ValueError, match=r"num_frames is 93; vdit-nano was trained on 29"):
        NANO.grid(93)


@pytest.mark.parametrize(
    ("name", "steps", "message"),
    [
        ("heun", 20, "sampler is 'heun'; vdit-nano was made for ddim, euler_ancestral, consistency"),
        ("ddim", 3, "num_inference_steps is 3; ddim takes 4 to 100"),
        ("consistency", 6, "num_inference_steps is 6; consistency takes 4 to 8, a multiple of 4"),
    ],
)
def test_sampler_or_steps_that_the_weights_cannot_do_are_refused(name: str, steps: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NANO.check_sampler(name, steps)


def test_size_that_strides_do_not_divide_is_no_model() -> None:
    with pytest.raises(ValueError, match="29 frames of 60x64 do not fit strides 4x8x8"):
        dataclasses.replace(NANO, width=60)


def test_tokens_are_those_of_the_published_shapes() -> None:
    assert NANO.num_tokens(29) == 8 * 4 * 4
    assert get_video_spec("vdit-osp-29x720p").num_tokens(29) == 8 * 45 * 80
    assert get_video_spec("vdit-osp-93x720p").num_tokens(93) == 24 * 45 * 80


def test_every_default_is_within_its_own_range() -> None:
    for spec in VIDEO_MODELS.values():
        for name, steps in spec.samplers.items():
            assert spec.check_sampler(name, steps.default_steps) is steps
        assert 1 <= spec.default_guidance <= spec.max_guidance


def test_weights_of_the_user_are_another_folder_of_the_same_model() -> None:
    spec = get_video_spec("vdit-osp-29x720p")
    assert spec.checkpoint_dir is None
    assert dataclasses.replace(spec.with_checkpoint(Path("there")), checkpoint_dir=None) == spec
