"""The parts of the plugin that need no engine. With one: tests/contracts/test_chat_engines.py."""

from __future__ import annotations

import subprocess
import sys
import warnings
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.families.texthawk2.image_processor import cut_tiles
from models.families.texthawk2.vllm_images import CutImage, TileProcessor
from serving.replica.chat.setup import engine_environment
from tests.support.chat_models import LIMITS, TILE, make_image


def test_entry_point_names_the_registration() -> None:
    """vLLM finds the plugin by this; `make install` writes it."""
    (found,) = [entry for entry in entry_points(group="vllm.general_plugins") if entry.name == "vireo"]
    assert found.value == "models.vllm_plugin:register"


def test_registration_may_be_repeated() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's own, on import
        from vllm import ModelRegistry

        from models.vllm_plugin import register

        register()
        register()
    assert "TextHawk2ForConditionalGeneration" in ModelRegistry.get_supported_archs()


def test_the_model_is_loaded_when_it_is_built_and_not_before() -> None:
    """In a process of its own: other tests here build it."""
    code = (
        "import sys; from models.vllm_plugin import register; register(); "
        "sys.exit('models.families.texthawk2.vllm_model' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr


def test_tiles_go_through_as_they_are_and_pictures_are_cut_alike() -> None:
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (2 * TILE, 3 * TILE, 3), dtype=np.uint8)
    tiles, grid = cut_tiles(pixels, LIMITS)
    other = make_image(1)
    process = TileProcessor(LIMITS)
    ours = process([CutImage(tiles, grid), CutImage(other.tiles, other.grid)])
    bare = process([Image.fromarray(pixels), Image.fromarray(other.tiles[0])])
    for output in (ours, bare):
        assert output["grids"].tolist() == [[2, 3], [1, 1]]
        assert output["pixel_values"].numpy().dtype == np.uint8
        np.testing.assert_array_equal(output["pixel_values"].numpy(), np.concatenate([tiles, other.tiles]))


def test_read_only_tiles_are_taken() -> None:
    """Tiles may lie in memory that another process owns."""
    image = make_image(2)
    image.tiles.flags.writeable = False
    output = TileProcessor(LIMITS)([CutImage(image.tiles, image.grid)])
    np.testing.assert_array_equal(output["pixel_values"].numpy(), image.tiles)


@pytest.mark.parametrize(
    ("tiles", "grid"),
    [
        (np.zeros((1, TILE, TILE, 3), np.float32), (1, 1)),
        (np.zeros((2, TILE, TILE, 3), np.uint8), (1, 1)),
        (np.zeros((2, TILE, TILE, 3), np.uint8), (1, 2)),  # the thumbnail is missing
        (np.zeros((1, TILE, TILE + 1, 3), np.uint8), (1, 1)),
        (np.zeros((0, TILE, TILE, 3), np.uint8), (0, 1)),
        (np.zeros((17, TILE, TILE, 3), np.uint8), (4, 4)),  # more than nine tiles
        (np.zeros((6, TILE, TILE, 3), np.uint8), (1, 5)),  # longer than four
    ],
)
def test_tiles_that_no_gateway_cuts_are_refused(tiles: np.ndarray[Any, Any], grid: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="tiles"):
        TileProcessor(LIMITS)([CutImage(tiles, grid)])


def test_other_things_are_refused() -> None:
    with pytest.raises(ValueError, match="not str"):
        TileProcessor(LIMITS)(["https://example.org/image.png"])


def test_environment_keeps_to_the_run_folder_and_compiles_on_gpus_only() -> None:
    cpu, cuda = engine_environment(Path("run")), engine_environment(Path("run"), "cuda")
    assert cpu["VLLM_CACHE_ROOT"] == str(Path("run", "vllm"))
    assert cpu.keys() - cuda.keys() == {"TORCH_COMPILE_DISABLE", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"}
    assert {cpu[name] for name in ("VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "HF_HUB_OFFLINE")} == {"1"}
