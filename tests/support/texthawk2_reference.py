"""TextHawk2's tiles the simplest way: resize, crop one tile after the other, stack. Twin of ``cut_tiles``."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from models.families.texthawk2.tiling import PUBLISHED, TilingLimits, best_grid


def cut_tiles_reference(
    rgb: npt.NDArray[np.uint8], limits: TilingLimits = PUBLISHED
) -> tuple[npt.NDArray[np.uint8], tuple[int, int]]:
    """What ``models.families.texthawk2.image_processor.cut_tiles`` has to return."""
    side = limits.tile_size
    rows, cols = best_grid(rgb.shape[0], rgb.shape[1], limits)
    picture = Image.fromarray(rgb)
    resized = picture.resize((cols * side, rows * side), Image.Resampling.BICUBIC)
    tiles = []
    if (rows, cols) != (1, 1):
        tiles.append(_thumbnail(picture, side))
    for row in range(rows):
        boxes = [(col * side, row * side, (col + 1) * side, (row + 1) * side) for col in range(cols)]
        tiles += [resized.crop(box) for box in boxes]
    return np.stack([np.asarray(tile) for tile in tiles]), (rows, cols)


def _thumbnail(picture: Image.Image, side: int) -> Image.Image:
    if picture.width % side or picture.height % side:
        return picture.resize((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return picture.reduce((picture.width // side, picture.height // side))
