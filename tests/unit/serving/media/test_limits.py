from __future__ import annotations

import dataclasses
import math

import pytest

from serving.errors import ImageTooLarge, InvalidImage, PayloadTooLarge, TooManyImages
from serving.media.limits import MediaBudget, MediaLimits

LIMITS = MediaLimits(
    max_bytes_per_image=1000,
    max_bytes_per_request=1500,
    max_pixels=10_000,
    max_pixels_per_request=15_000,
    max_tiles_per_request=9,
    min_side=4,
    max_side=400,
    max_aspect=8.0,
    max_images=3,
)


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(MediaLimits)])
@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
def test_limits_refuse_numbers_that_bound_nothing(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        MediaLimits(**{field: value})


def test_limits_refuse_contradiction_and_more_than_one_frame() -> None:
    with pytest.raises(ValueError, match="min_side 9 is over max_side 8"):
        MediaLimits(min_side=9, max_side=8)
    with pytest.raises(ValueError, match="max_frames is 2"):
        MediaLimits(max_frames=2)


@pytest.mark.parametrize(("width", "height"), [(4, 4), (4, 32), (400, 25), (100, 100)])
def test_sizes_on_the_limit_pass(width: int, height: int) -> None:
    small = dataclasses.replace(LIMITS, max_aspect=16.0) if width == 400 else LIMITS
    assert small.check_size(width, height) is None  # it raises otherwise


@pytest.mark.parametrize(
    ("width", "height", "error", "says"),
    [
        (401, 4, ImageTooLarge, "401 x 4 pixels; the longest allowed side is 400"),
        (101, 100, ImageTooLarge, "10100 in all; the limit is 10000"),
        (3, 10, InvalidImage, "3 x 10 pixels; the shortest allowed side is 4"),
        (33, 4, InvalidImage, "aspect ratio of 8.2; the limit is 8"),
    ],
)
def test_sizes_over_a_limit_are_refused_with_value_and_limit(
    width: int, height: int, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        LIMITS.check_size(width, height)


def test_byte_count_on_the_limit_passes_and_over_it_is_refused() -> None:
    LIMITS.check_bytes(1000)
    with pytest.raises(ImageTooLarge, match="1001 bytes; the limit is 1000"):
        LIMITS.check_bytes(1001)
    with pytest.raises(InvalidImage, match="empty"):
        LIMITS.check_bytes(0)


def test_budget_counts_images_bytes_pixels_and_tiles_over_the_whole_request() -> None:
    budget = MediaBudget(LIMITS)
    for _ in range(3):
        budget.add_image()
        budget.add_bytes(500)
        budget.add_pixels(5_000)
        budget.add_tiles(3)
    with pytest.raises(TooManyImages, match="more than 3"):
        budget.add_image()
    with pytest.raises(PayloadTooLarge, match="1501 bytes or more; the limit is 1500"):
        budget.add_bytes(1)
    with pytest.raises(ImageTooLarge, match="15001 pixels or more; the limit is 15000"):
        budget.add_pixels(1)
    with pytest.raises(ImageTooLarge, match="10 tiles or more; the limit is 9"):
        budget.add_tiles(1)
