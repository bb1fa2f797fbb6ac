"""From a picture to its tiles, as bytes. NumPy and Pillow only: decode workers run this and never import torch.

The picture is brought to its grid's size with Pillow's antialiased bicubic filter (the filter of SigLIP's published
preprocessing), or left alone where it has that size, then cut. The thumbnail comes from the picture itself, not from
the resized one. Where the picture's sides are whole multiples of the tile's, its pixels are the means of blocks.
Elsewhere a box filter by whole numbers comes first, then bicubic (Pillow's ``reducing_gap=2.0``, which its
``Image.thumbnail`` has, too). On large pictures that is several times faster than bicubic alone, and differs from it by
a few grey levels. Scaling to floats is the model's work, on its device (``normalise`` says what it is).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.contract import Variant
from models.families.texthawk2.tiling import PUBLISHED, Grid, TilingLimits, best_grid, num_tiles

Pixels: TypeAlias = NDArray[np.uint8]

RESAMPLING: Final = Image.Resampling.BICUBIC
REDUCING_GAP: Final = 2.0


def tile_cutter(variant: Variant) -> Callable[[Pixels], tuple[Pixels, Grid]]:
    """``cut_tiles`` within the limits of a variant."""
    return partial(cut_tiles, limits=TilingLimits.of(variant.io))


def cut_tiles(rgb: Pixels, limits: TilingLimits = PUBLISHED) -> tuple[Pixels, Grid]:
    """Tiles (T, S, S, 3) of a picture (H, W, 3), both uint8 RGB, and its grid.

    Tile 0 is the thumbnail, then come the grid's tiles row by row; a picture of grid 1 x 1 has only the one tile. The
    result is contiguous and shares no memory with ``rgb``. Twin in plain steps: ``tests.support.texthawk2_reference``.

    Raises:
        ValueError: not uint8 (H, W, 3), empty, or more elongated than ``limits.max_aspect``.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ValueError(f"expected uint8 (H, W, 3) pixels, got {rgb.dtype} {rgb.shape}; decode to RGB first")
    height, width, _ = rgb.shape
    grid, side = best_grid(height, width, limits), limits.tile_size
    rows, cols = grid
    tiles = np.empty((num_tiles(grid), side, side, 3), np.uint8)
    fits = (height, width) == (rows * side, cols * side)
    picture = None if fits and rows * cols == 1 else Image.fromarray(np.ascontiguousarray(rgb))
    if rows * cols > 1 and picture is not None:
        tiles[0] = np.asarray(_thumbnail(picture, side))
    if not fits and picture is not None:
        rgb = np.asarray(picture.resize((cols * side, rows * side), RESAMPLING))
    # One pass over the memory: a row of pixels of a tile, side * 3 bytes, is the unit that is moved.
    cut = rgb.reshape(rows, side, cols, side * 3).transpose(0, 2, 1, 3)
    tiles[-rows * cols :].reshape(rows, cols, side, side * 3)[...] = cut
    return tiles, grid


def _thumbnail(picture: Image.Image, side: int) -> Image.Image:
    if picture.width % side == 0 and picture.height % side == 0:
        return picture.reduce((picture.width // side, picture.height // side))
    return picture.resize((side, side), RESAMPLING, reducing_gap=REDUCING_GAP)


def normalise(tiles: Pixels) -> NDArray[np.float32]:
    """Tiles (T, S, S, 3) as SigLIP sees them, float32 (T, 3, S, S) in -1..1: ``(x / 255 - 0.5) / 0.5``.

    For reference; ``models.families.texthawk2.vision.normalise`` does the same on the device.
    """
    scaled: NDArray[np.float32] = tiles.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(127.5) - np.float32(1)
    return scaled
