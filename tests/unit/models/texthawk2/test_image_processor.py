"""Tiles against their plain twin, and on shapes that hurt."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.families.texthawk2.image_processor import cut_tiles, normalise
from models.families.texthawk2.tiling import PUBLISHED, TilingLimits, num_tiles
from models.families.texthawk2.vision import normalise as normalise_on_device
from tests.support.media_files import Array, gradient, noise
from tests.support.texthawk2_reference import cut_tiles_reference

SMALL = TilingLimits(tile_size=8, max_area=6, max_side=4)


def check_equal_to_twin(rgb: Array, limits: TilingLimits) -> None:
    tiles, grid = cut_tiles(rgb, limits)
    expected, expected_grid = cut_tiles_reference(rgb, limits)
    assert grid == expected_grid
    np.testing.assert_array_equal(tiles, expected)
    assert tiles.dtype == np.uint8
    assert tiles.flags.c_contiguous
    assert tiles.shape == (num_tiles(grid), limits.tile_size, limits.tile_size, 3)
    assert not np.shares_memory(tiles, rgb)


@pytest.mark.parametrize(
    ("height", "width"),
    [(224, 224), (224, 448), (1120, 896), (223, 449), (100, 37), (1, 1), (1, 60), (60, 1), (900, 1200), (3000, 2000)],
)
def test_published_tiles_equal_the_plain_twin(height: int, width: int) -> None:
    check_equal_to_twin(noise(height, width), PUBLISHED)


@settings(max_examples=200)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 3))
def test_small_tiles_equal_the_plain_twin_at_every_size(height: int, width: int, seed: int) -> None:
    if max(height, width) <= 64 * min(height, width):
        check_equal_to_twin(noise(height, width, seed), SMALL)


def test_tiles_of_a_fitting_picture_are_its_pixels_in_reading_order() -> None:
    rgb = noise(448, 672)
    tiles, grid = cut_tiles(rgb)
    assert grid == (2, 3)
    for row in range(2):
        for col in range(3):
            expected = rgb[224 * row : 224 * row + 224, 224 * col : 224 * col + 224]
            np.testing.assert_array_equal(tiles[1 + 3 * row + col], expected)


@pytest.mark.parametrize("size", [(1344, 896), (1000, 700)])
def test_thumbnail_is_the_whole_picture_and_near_plain_bicubic(size: tuple[int, int]) -> None:
    rgb = gradient(*size)
    thumbnail = cut_tiles(rgb)[0][0].astype(int)
    plain = np.asarray(Image.fromarray(rgb).resize((224, 224), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(thumbnail - plain).mean() < 2


@pytest.mark.parametrize(("rows", "cols"), [(1, 2), (5, 4), (6, 12)])
def test_thumbnail_of_a_fitting_picture_is_the_mean_of_its_blocks(rows: int, cols: int) -> None:
    rgb = noise(224 * rows, 224 * cols)
    blocks = rgb.reshape(224, rows, 224, cols, 3).astype(float)
    thumbnail = cut_tiles(rgb)[0][0]
    np.testing.assert_allclose(thumbnail, blocks.mean(axis=(1, 3)), atol=0.51)  # Pillow divides in fixed point


@pytest.mark.parametrize("view", ["flipped", "strided", "read-only", "fortran"])
def test_memory_layout_does_not_matter(view: str) -> None:
    base = noise(96, 200)
    views = {"flipped": base[::-1], "strided": base[::2, ::3], "fortran": np.asfortranarray(base), "read-only": base}
    rgb = views[view]
    if view == "read-only":
        rgb.flags.writeable = False
    np.testing.assert_array_equal(cut_tiles(rgb, SMALL)[0], cut_tiles(np.array(rgb, order="C"), SMALL)[0])


@pytest.mark.parametrize(
    "rgb",
    [
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 0, 3), np.uint8),
    ],
)
def test_what_is_no_picture_is_refused(rgb: Array) -> None:
    with pytest.raises(ValueError, match="pixels"):
        cut_tiles(rgb)


def test_elongated_picture_is_refused_with_limit_and_remedy() -> None:
    with pytest.raises(ValueError, match=r"the limit is 64.*Crop or pad"):
        cut_tiles(np.zeros((1, 65, 3), np.uint8))


def test_normalise_is_siglips_and_equals_the_one_on_the_device() -> None:
    tiles = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    values = normalise(tiles)
    assert values.shape == (1, 3, 16, 16)
    assert values.dtype == np.float32
    expected = (tiles.astype(np.float64) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(values, expected.transpose(0, 3, 1, 2), atol=1.2e-7)  # one rounding of float32 near 1
    np.testing.assert_array_equal(values, normalise_on_device(torch.from_numpy(tiles)).numpy())


def test_decode_workers_need_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, numpy, models.families.texthawk2.image_processor as p\n"
        "p.cut_tiles(numpy.zeros((300, 500, 3), numpy.uint8))\n"
        "print({'torch', 'transformers', 'torchvision', 'tokenizers'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
