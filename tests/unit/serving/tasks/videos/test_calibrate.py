"""From what was measured to the table that requests are served by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.contract import Variant
from models.registry import find
from serving.errors import ConfigError
from serving.tasks.videos.calibrate import calibrate
from serving.tasks.videos.points import load_table


def setting(name: str, right: float, frames: int = 29, **more: Any) -> dict[str, Any]:
    return {
        "variant": "teacher", "sampler": "ddim", "num_steps": 20, "guidance": 4.0, "attention": "dense",
        "frames": frames, "one_object": {"right": right}, "step_s": frames / 1000, "fixed_s": 0.1, **more,
    }  # fmt: skip


@pytest.fixture
def variant(tmp_path: Path) -> Variant:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"weights")
    return find("vdit-nano")[1].with_weights(tmp_path)


def write(variant: Variant, settings: dict[str, Any]) -> None:
    assert variant.weights is not None
    (variant.weights / "evaluation.json").write_text(json.dumps({"settings": settings}))


def test_lengths_of_one_setting_are_one_point_as_good_as_the_worst_of_them(variant: Variant) -> None:
    write(variant, {
        "ddim 20": setting("ddim 20", 0.95), "ddim 20, 61 frames": setting("ddim 20, 61 frames", 0.9, 61),
        "ddim 20, tile:2:6": setting("ddim 20, tile:2:6", 0.85, attention="tile:2:6"),
    })  # fmt: skip
    assert variant.weights is not None
    assert calibrate(find("vdit-nano")[0], variant, 6.0).parent == variant.weights
    dense, tile = load_table(variant.id, variant.weights).points
    assert (dense.name, dense.quality, [cost.num_frames for cost in dense.costs]) == ("ddim-20", 0.9, [29, 61])
    assert dense.seconds(64, 64, 61) == pytest.approx(20 * 0.061 + 0.1)
    assert (tile.name, tile.quality, [cost.num_frames for cost in tile.costs]) == ("ddim-20-tile-2-6", 0.85, [29])


def test_folder_that_was_not_evaluated_is_refused_with_what_to_do(variant: Variant) -> None:
    with pytest.raises(ConfigError, match=r"models\.training\.vdit\.evaluate"):
        calibrate(find("vdit-nano")[0], variant, 6.0)
    write(variant, {"ddim 20": {"variant": "teacher"}})
    with pytest.raises(ConfigError, match=r"no usable evaluation.json.*models\.training\.vdit\.evaluate"):
        calibrate(find("vdit-nano")[0], variant, 6.0)
