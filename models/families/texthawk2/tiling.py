"""Shape-adaptive tiling: into which grid of square tiles an image is cut.

Source: UReader (arXiv:2310.05126) section 3.1 and TextHawk2 (arXiv:2410.05261) section 2. Both score every allowed
grid of ``rows x cols`` tiles of side S by two overlaps between the image's box (H x W) and the grid's, which is
rows*S x cols*S, laid on the same corner, and take the best sum:

    regular IoU = inter / (H*W + rows*cols*S*S - inter),   inter = min(H, rows*S) * min(W, cols*S)
    shape IoU   = the same once the image is scaled to the grid's width. The boxes then differ in height only, so it is
                  the ratio of the two aspect ratios, the smaller over the larger:  min(H*cols, W*rows) / max(...)

The first likes grids of the image's resolution, the second grids of its shape. Equal sums: fewer tiles, then fewer
rows. Differs from UReader's published code, which multiplies the shape IoU by 100; TextHawk2 says the plain sum.

The whole image scaled to one tile, the *thumbnail*, is tile 0 of every grid but 1 x 1, where it would be the same tile.

Pure Python: the server counts tokens with this before it decodes anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from models.contract import Variant
from models.io import ChatIO

TOKENS_PER_TILE = 16
_TIE_DIGITS = 12
"""Scores that agree to so many digits are equal: what the order of floating-point sums leaves is not a reason."""


class Grid(NamedTuple):
    """Tiles from top to bottom, and from left to right."""

    rows: int
    cols: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TilingLimits:
    """What grids are allowed.

    ``tile_size``: side of a tile in pixels. ``max_area``: tiles of a grid, without the thumbnail (published: 72; 36 in
    pre-training). ``max_side``: rows, and columns. ``max_aspect``: longer over shorter side of an image; beyond it
    nothing could be read after the resize.

    Raises:
        ValueError: a bound is not positive.
    """

    tile_size: int = 224
    max_area: int = 72
    max_side: int = 12
    max_aspect: float = 64.0

    def __post_init__(self) -> None:
        if self.tile_size < 1 or self.max_area < 1 or self.max_side < 1 or not self.max_aspect >= 1:
            raise ValueError(f"{self} is impossible; every bound must be at least 1")

    @classmethod
    def of(cls, io: ChatIO) -> TilingLimits:
        """Those of a variant."""
        return cls(tile_size=io.tile_size, max_area=io.max_tiles, max_side=io.max_tiles_side)

    @property
    def max_tiles(self) -> int:
        """Tiles of the largest image, thumbnail included."""
        return max(num_tiles(grid) for grid in candidate_grids(self.max_area, self.max_side))


PUBLISHED = TilingLimits()


@lru_cache(maxsize=64)
def candidate_grids(max_area: int, max_side: int) -> tuple[Grid, ...]:
    """Every grid within the bounds, in the order in which ties are broken: fewer tiles first, then fewer rows."""
    sides = range(1, max_side + 1)
    grids = [Grid(rows, cols) for rows in sides for cols in sides if rows * cols <= max_area]
    return tuple(sorted(grids, key=lambda grid: (grid.rows * grid.cols, grid.rows)))


def grid_score(height: int, width: int, grid: Grid, tile_size: int) -> float:
    """Regular IoU plus shape IoU, in (0, 2]."""
    grid_height, grid_width = grid.rows * tile_size, grid.cols * tile_size
    overlap = min(height, grid_height) * min(width, grid_width)
    regular_iou = overlap / (height * width + grid_height * grid_width - overlap)
    across, along = height * grid.cols, width * grid.rows
    return regular_iou + min(across, along) / max(across, along)


@lru_cache(maxsize=4096)
def best_grid(height: int, width: int, limits: TilingLimits = PUBLISHED) -> Grid:
    """The grid for an image of ``height`` x ``width`` pixels.

    Raises:
        ValueError: a side is under one pixel, or the image is more elongated than ``limits.max_aspect``.
    """
    check_image_size(height, width, limits)
    grids = candidate_grids(limits.max_area, limits.max_side)
    # max() keeps the first of equals, and the candidates come in the order of the tie-break.
    return max(grids, key=lambda grid: round(grid_score(height, width, grid, limits.tile_size), _TIE_DIGITS))


def check_image_size(height: int, width: int, limits: TilingLimits = PUBLISHED) -> None:
    """Refuse what cannot be tiled.

    Raises:
        ValueError: see ``best_grid``.
    """
    shorter, longer = min(height, width), max(height, width)
    if shorter < 1:
        raise ValueError(f"image is {width} x {height} pixels; both sides must be at least 1. Send a larger image")
    if longer > shorter * limits.max_aspect:
        raise ValueError(
            f"image is {width} x {height} pixels, an aspect ratio of {longer / shorter:.1f}; the limit is "
            f"{limits.max_aspect:g} (max_aspect). Crop or pad it"
        )


def num_tiles(grid: Grid | tuple[int, int]) -> int:
    """Tiles of one image: those of the grid, and the thumbnail unless the grid is 1 x 1."""
    rows, cols = grid
    return rows * cols + (rows * cols > 1)


def count_tiles(variant: Variant, width: int, height: int) -> int:
    """Tiles of an image of that size. Raises: ValueError: see ``best_grid``."""
    return num_tiles(best_grid(height, width, TilingLimits.of(variant.io)))


def image_tokens(grid: Grid | tuple[int, int], tokens_per_tile: int = TOKENS_PER_TILE) -> int:
    """Tokens of one image that reach the language model, without the two that mark its begin and end."""
    return num_tiles(grid) * tokens_per_tile


def total_image_tokens(grids: Iterable[Grid | tuple[int, int]], tokens_per_tile: int = TOKENS_PER_TILE) -> int:
    """The same for several images."""
    return sum(image_tokens(grid, tokens_per_tile) for grid in grids)
