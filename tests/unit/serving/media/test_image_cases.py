"""The files of tests/data/images, decoded."""

from __future__ import annotations

import numpy as np
import pytest

from serving.errors import InvalidImage
from serving.media.decode import decode
from serving.media.limits import MediaLimits
from serving.media.prepare import content_sha256
from tests.support import image_cases, jpeg_files

LIMITS = MediaLimits()


def test_every_file_has_an_answer() -> None:
    named = {*image_cases.DIGITS, *image_cases.REFUSED, image_cases.LANTERN}
    assert {path.name for path in image_cases.FOLDER.iterdir()} == named


@pytest.mark.parametrize("name", image_cases.SAME_PIXELS_AS)
def test_harmless_metadata_leaves_pixels_and_hash_alone(name: str) -> None:
    image, twin = (decode(data, LIMITS).rgb for data in (image_cases.load(name), image_cases.load_twin(name)))
    np.testing.assert_array_equal(image, twin)
    assert content_sha256(image) == content_sha256(twin)


def test_trailer_of_a_jpeg_leaves_its_pixels_alone() -> None:
    data = image_cases.load("jpeg-complete-with-trailer.jpg")
    end = jpeg_files.end_of_first_picture(data)
    assert end < len(data)
    np.testing.assert_array_equal(decode(data, LIMITS).rgb, decode(data[:end], LIMITS).rgb)


@pytest.mark.parametrize("name", image_cases.REFUSED)
def test_damaged_pixels_are_refused(name: str) -> None:
    with pytest.raises(InvalidImage, match=r"truncated|damaged"):
        decode(image_cases.load(name), LIMITS)


def test_transparent_level_of_four_bits_leaves_paper_white_and_letters_dark() -> None:
    rgb = decode(image_cases.load(image_cases.LANTERN), LIMITS).rgb
    assert (rgb == 255).mean() > 0.5
    assert rgb.min() < 100
