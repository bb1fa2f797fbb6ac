"""The picture of operating points: which are drawn, and which of them are dropped."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from models.operating_points import share_quality
from models.registry import find
from serving.cli.pareto import draw_points, lines_of
from serving.operating_points import PricedPoint, load_table, priced_points


def point(number: int, name: str, right: float | None, cost: float, dominated_by: str | None = None) -> PricedPoint:
    quality = None if right is None else share_quality(right, 50)
    return PricedPoint(number, name, quality, latency_s=cost, busy_s=cost, energy_j=6 * cost, dominated_by=dominated_by)


def test_a_dropped_point_is_named_with_the_one_that_is_picked_in_its_place() -> None:
    lines = lines_of([point(1, "n=4", 0.9, 4.0), point(2, "n=3", 0.8, 5.0, "n=4"), point(3, "n=1", 0.5, 1.0)])
    assert lines == [" 1  n=4", " 2  n=3  (dropped: 1 is no worse in anything)", " 3  n=1"]


def test_a_point_has_the_number_of_the_printed_table_whatever_is_not_drawn() -> None:
    lines = lines_of([point(1, "n=9", None, 9.0), point(2, "n=4", 0.9, 4.0), point(3, "n=3", 0.8, 5.0, "n=4")])
    assert lines == [" 2  n=4", " 3  n=3  (dropped: 2 is no worse in anything)"]


def test_points_are_drawn_into_a_png_and_those_that_are_dropped_are_grey(tmp_path: Path) -> None:
    def colours(*points: PricedPoint) -> set[tuple[int, int, int]]:
        draw_points("m", "right", points, tmp_path / "new" / "m.png")
        with Image.open(tmp_path / "new" / "m.png") as image:
            assert image.format == "PNG"
            found = image.convert("RGB").getcolors(1 << 24)
        assert found is not None
        return {colour for _, colour in found}

    blue, grey = (0x2B, 0x6C, 0xB0), (0xA0, 0xAE, 0xC0)
    front = colours(point(1, "n=4", 0.9, 4.0), point(2, "n=1", 0.5, 1.0))
    assert blue in front
    assert grey not in front
    assert {blue, grey} <= colours(point(1, "n=4", 0.9, 4.0), point(2, "n=3", 0.8, 5.0, "n=4"))


def test_points_without_a_quality_or_a_cost_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="m has no operating point with a quality and a cost"):
        draw_points("m", "", [point(1, "n=4", None, 4.0), point(2, "n=3", 0.5, 0.0)], tmp_path / "m.png")
    assert not (tmp_path / "m.png").exists()


@pytest.mark.parametrize("model", ["vdit-nano", "dyn-perceiver-nano", "texthawk2-nano", "dit-moe-nano", "exvideo-nano"])
def test_of_every_table_that_ships_the_best_and_the_cheapest_points_stay(model: str) -> None:
    family, variant = find(model)
    points = priced_points(family, variant, load_table(variant))
    left = {one.name for one in points if one.dominated_by is None}
    assert min(points, key=lambda one: one.energy_j).name in left
    assert {one.dominated_by for one in points} - {None} <= left, "what is picked in its place is not dropped itself"
    lows = [one.quality.low for one in points if one.quality is not None]
    assert max(lows) == max(one.quality.low for one in points if one.quality is not None and one.name in left)
