"""Which grid an image is cut into, against the papers and against boxes counted pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.families.texthawk2.tiling import (
    PUBLISHED,
    Grid,
    TilingLimits,
    best_grid,
    candidate_grids,
    grid_score,
    image_tokens,
    num_tiles,
    total_image_tokens,
)

PRETRAINING = TilingLimits(max_area=36)
sides = st.integers(1, 6000)


def elongation(height: int, width: int) -> float:
    return max(height, width) / min(height, width)


@pytest.mark.parametrize(
    ("height", "width", "grid"),
    [
        (1120, 896, (5, 4)),
        (896, 1120, (4, 5)),
        (224, 448, (1, 2)),
        (448, 224, (2, 1)),
        (224, 224, (1, 1)),
        (896, 1344, (4, 6)),
        (1344, 2688, (6, 12)),
        (2688, 1344, (12, 6)),
        (64, 64, (1, 1)),
        (1, 1, (1, 1)),
        (1, 50, (1, 12)),
    ],
)
def test_grid_of_known_sizes(height: int, width: int, grid: tuple[int, int]) -> None:
    assert best_grid(height, width) == grid


def test_token_counts_of_the_paper() -> None:
    tall = best_grid(1120, 896)
    assert tall.rows * tall.cols * 16 == 320
    assert image_tokens(tall) == 320 + 16
    assert PUBLISHED.max_tiles * 16 == 1168
    assert max(image_tokens(grid) for grid in candidate_grids(72, 12)) == 1168
    wide = best_grid(224, 448)
    assert wide.rows * wide.cols * 16 == 32
    assert image_tokens(best_grid(224, 224)) == 16
    assert total_image_tokens([tall, (1, 1)]) == 352


def test_pretraining_reaches_the_papers_pixels_and_long_edge() -> None:
    largest = max(candidate_grids(36, 12), key=lambda grid: grid.rows * grid.cols)
    assert largest.rows * largest.cols * 224 * 224 == pytest.approx(1.8e6, rel=0.01)
    assert 12 * 224 == 2688
    assert PRETRAINING.max_tiles == 37


def boxes_counted(height: int, width: int, grid: Grid, tile: int) -> float:
    """Both overlaps by drawing the boxes; the image scaled to the grid's width must have a whole height."""

    def iou(a: tuple[int, int], b: tuple[int, int]) -> float:
        canvas = np.zeros((2, max(a[0], b[0]), max(a[1], b[1])), bool)
        canvas[0, : a[0], : a[1]] = True
        canvas[1, : b[0], : b[1]] = True
        return float((canvas[0] & canvas[1]).sum() / (canvas[0] | canvas[1]).sum())

    box = (grid.rows * tile, grid.cols * tile)
    scaled_height, rest = divmod(height * box[1], width)
    assert rest == 0
    return iou((height, width), box) + iou((scaled_height, box[1]), box)


@pytest.mark.parametrize("grid", [Grid(1, 1), Grid(1, 3), Grid(3, 1), Grid(2, 3), Grid(4, 2)])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 4), (4, 16), (20, 8), (3, 24)])
def test_score_equals_counted_boxes(height: int, width: int, grid: Grid) -> None:
    assert grid_score(height, width, grid, 8) == pytest.approx(boxes_counted(height, width, grid, 8), abs=1e-12)


@given(sides, sides)
def test_best_grid_beats_every_other_and_fits_the_limits(height: int, width: int) -> None:
    if elongation(height, width) > PUBLISHED.max_aspect:
        return
    grid = best_grid(height, width)
    assert grid.rows * grid.cols <= 72
    assert max(grid) <= 12
    best = grid_score(height, width, grid, 224)
    assert all(best >= grid_score(height, width, other, 224) - 1e-11 for other in candidate_grids(72, 12))


@given(sides, sides)
def test_transposed_image_has_the_transposed_grid_unless_two_are_equally_good(height: int, width: int) -> None:
    if elongation(height, width) > PUBLISHED.max_aspect:
        return
    grid, turned = best_grid(height, width), best_grid(width, height)
    score = grid_score(height, width, grid, 224)
    assert grid_score(height, width, Grid(turned.cols, turned.rows), 224) == pytest.approx(score, abs=1e-11)
    assert num_tiles(grid) == num_tiles(turned)


def test_tie_goes_to_fewer_tiles_then_fewer_rows() -> None:
    # No square picture prefers an oblong grid, so equals are shown by their scores and by the order that decides.
    assert grid_score(100, 100, Grid(1, 2), 224) == grid_score(100, 100, Grid(2, 1), 224)
    grids = candidate_grids(72, 12)
    assert grids.index(Grid(1, 2)) < grids.index(Grid(2, 1)) < grids.index(Grid(1, 3))
    assert len(set(grids)) == len(grids) == sum(r * c <= 72 for r in range(1, 13) for c in range(1, 13))


@pytest.mark.parametrize(("height", "width"), [(0, 5), (5, 0), (-1, 5)])
def test_empty_image_is_refused(height: int, width: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        best_grid(height, width)


def test_extreme_aspect_ratio_is_refused_with_limit_and_remedy() -> None:
    best_grid(64, 1)
    with pytest.raises(ValueError, match=r"65\.0; the limit is 64.*Crop or pad"):
        best_grid(65, 1)


@pytest.mark.parametrize("field", ["tile_size", "max_area", "max_side", "max_aspect"])
def test_impossible_limits_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        TilingLimits(**{field: 0})
    with pytest.raises(ValueError, match="at least 1"):
        TilingLimits(max_aspect=float("nan"))
