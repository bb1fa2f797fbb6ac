"""The card of vdit: its variants refuse by name what they were not made for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from models.contract import SettingError, Value, Variant
from models.io import ClipRequest
from models.registry import find

FAMILY, NANO = find("vdit-nano")


def refusal(variant: Variant = NANO, num_frames: int = 29, **settings: Value) -> SettingError:
    point = FAMILY.check_point(settings)
    with pytest.raises(SettingError) as refused:
        FAMILY.allowed.load()(variant, ClipRequest(prompt="a ball", num_frames=num_frames), point)  # type: ignore[union-attr]
    return refused.value


@pytest.mark.parametrize(
    ("request_", "name", "message"),
    [
        ({"num_frames": 93}, "num_frames", "num_frames is 93; this checkpoint was trained on 29, 61"),
        ({"num_inference_steps": 3}, "num_inference_steps", "num_inference_steps is 3; ddim takes 4 to 100"),
        (
            {"sampler": "consistency", "num_inference_steps": 6},
            "num_inference_steps",
            "num_inference_steps is 6; consistency takes 4 to 8, a multiple of 4",
        ),
        (
            {"sampler": "consistency", "num_inference_steps": 4, "guidance_scale": 4.0},
            "guidance_scale",
            "guidance_scale is 4; consistency has its guidance in its weights",
        ),
        ({"attention": "tile:2:5"}, "attention", "this clip has 8: use tile:K:8-K, e.g. tile:2:6"),
    ],
)
def test_what_the_weights_cannot_do_is_refused_by_name(request_: dict[str, Any], name: str, message: str) -> None:
    refused = refusal(**request_)
    assert refused.name == name
    assert message in str(refused)


def test_sampler_without_weights_is_refused_with_those_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    there = FAMILY.part("found")(NANO.with_weights(tmp_path))
    assert "this model does ddim, euler_ancestral" in str(refusal(there, sampler="consistency", num_inference_steps=4))
    (tmp_path / "student").mkdir()
    assert "consistency" in FAMILY.part("found")(NANO.with_weights(tmp_path)).io.samplers


def test_size_that_strides_do_not_divide_is_no_variant() -> None:
    with pytest.raises(ValueError, match="29 frames of 60x64 do not fit strides 4x8x8"):
        dataclasses.replace(NANO.io, width=60)


def test_tokens_are_those_of_the_published_shapes() -> None:
    assert NANO.io.num_tokens(29) == 8 * 4 * 4
    assert find("vdit-osp-29x720p")[1].io.num_tokens(29) == 8 * 45 * 80
    assert find("vdit-osp-93x720p")[1].io.num_tokens(93) == 24 * 45 * 80


@pytest.mark.parametrize("variant", FAMILY.variants, ids=lambda variant: variant.id)
def test_every_default_is_within_its_own_range(variant: Variant) -> None:
    for name, steps in variant.io.samplers.items():
        assert variant.io.check_sampler(name, steps.default_steps) is steps
    assert 1 <= variant.io.default_guidance <= variant.io.max_guidance
