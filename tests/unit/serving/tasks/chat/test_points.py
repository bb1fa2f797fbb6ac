"""What is known of a chat's quality by tiles and cap, and which tiles are tried."""

from __future__ import annotations

import pytest

from models.families.texthawk2.family import FAMILY, NANO
from models.io import knobs_of
from models.operating_points import point_name
from schedulers.plan import Cost, Point, Value
from serving.tasks.chat.points import Measured

FREE = Cost(latency_s={}, busy_s={}, watts=1.0)


def point(quality: float | None, **settings: Value) -> Point:
    return Point(name=point_name(settings), settings=settings, cost=FREE, quality=quality)


KNOWN = Measured(
    [
        point(0.4, max_tiles=1, max_tokens=8),
        point(0.5, max_tiles=1, max_tokens=32),
        point(0.6, max_tiles=4, max_tokens=32),
        point(0.55, max_tiles=12, max_tokens=32),
    ]
)


@pytest.mark.parametrize(
    ("tiles", "cap", "quality"),
    [
        (1, 8, 0.4), (1, 31, 0.4), (1, 32, 0.5), (1, 500, 0.5),  # of the longest cap that is not above
        (1, 7, None), (4, 31, None),  # shorter than any that was measured
        (2, 32, 0.5), (7, 99, 0.55), (2, 8, None),  # between two numbers of tiles
        (20, 32, 0.55),
        (None, 32, 0.6), (None, 8, 0.4), (None, 1, None),  # without pictures
    ],
)  # fmt: skip
def test_a_quality_is_promised_only_where_it_follows_from_what_was_measured(
    tiles: int | None, cap: int, quality: float | None
) -> None:
    assert KNOWN.quality(tiles, cap) == quality


def test_a_model_that_nobody_measured_promises_nothing() -> None:
    assert Measured().quality(4, 100) is None
    assert Measured().quality(None, 100) is None
    assert Measured([point(0.5)]).quality(None, 100) is None, "it does not say within how many tokens"
    assert Measured([point(0.5, max_tokens=10)]).quality(None, 10) == 0.5


def test_tiles_are_those_of_the_request_or_measured_ones_or_the_knobs() -> None:
    knobs = knobs_of(FAMILY, NANO)
    assert KNOWN.tiles_of(knobs, {}) == (4, 12, 1), "the best first"
    assert Measured().tiles_of(knobs, {}) == (12, 6, 4, 2, 1)
    assert KNOWN.tiles_of(knobs, {"max_tiles": 3}) == (3,)
    assert KNOWN.tiles_of((), {}) == ()
