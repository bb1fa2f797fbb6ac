"""Processor against a plain twin and on shapes that hurt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from models.contract import Variant
from models.pictures import SquarePicture, pad_to_square
from models.registry import find

PUBLISHED = find("dyn-perceiver-regnety-800mf")[1]
NANO = find("dyn-perceiver-nano")[1]
SQUASHED = replace(NANO, io=replace(NANO.io, fit="squash", interpolation="lanczos"))


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR))


def torchvision_like(rgb: np.ndarray) -> np.ndarray:
    """Resize(256, bicubic) then CenterCrop(224), spelled out from the documentation of the two."""
    image = Image.fromarray(rgb)
    width, height = image.size
    if width <= height:
        image = image.resize((256, int(256 * height / width)), Image.Resampling.BICUBIC)
    else:
        image = image.resize((int(256 * width / height), 256), Image.Resampling.BICUBIC)
    left, top = round((image.width - 224) / 2), round((image.height - 224) / 2)
    return np.asarray(image.crop((left, top, left + 224, top + 224)))


@pytest.mark.parametrize("size", [(256, 256), (333, 500), (500, 333), (100, 101), (257, 256), (1000, 224)])
def test_published_preprocessing_equals_its_plain_twin(size: tuple[int, int]) -> None:
    rgb = picture(*size)
    np.testing.assert_array_equal(SquarePicture(PUBLISHED)(rgb), torchvision_like(rgb))


@pytest.mark.parametrize("variant", [PUBLISHED, NANO, SQUASHED], ids=lambda variant: variant.io.fit)
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (2, 3), (32, 32), (31, 97)])
def test_any_size_comes_out_square_and_contiguous(variant: Variant, size: tuple[int, int]) -> None:
    out = SquarePicture(variant)(picture(*size))
    side = variant.io.input_size
    assert out.shape == (side, side, 3)
    assert out.dtype == np.uint8
    assert out.flags.c_contiguous


def test_nano_pads_with_the_colour_of_the_border() -> None:
    rgb = np.full((64, 32, 3), (10, 200, 30), np.uint8)
    rgb[20:40, 10:20] = 255
    out = SquarePicture(NANO)(rgb)
    np.testing.assert_array_equal(out[:, :8], np.broadcast_to((10, 200, 30), (32, 8, 3)))
    assert out[:, 8:24].max() == 255


def test_nano_keeps_a_picture_that_already_fits() -> None:
    rgb = picture(32, 32)
    np.testing.assert_array_equal(SquarePicture(NANO)(rgb), rgb)


def test_padding_centres() -> None:
    out = pad_to_square(np.full((2, 4, 3), 9, np.uint8), 4, np.array([1, 1, 1], np.uint8))
    assert out[:, 0, 0].tolist() == [1, 9, 9, 1]


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
    ids=["grey", "alpha", "float", "empty"],
)
def test_what_is_not_rgb_bytes_is_refused_with_its_shape(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \(H, W, 3\)"):
        SquarePicture(NANO)(wrong)
