"""What vLLM is given as an image: tiles that the gateway has cut, or a picture. To uint8 tensors, nothing more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature

from models.families.texthawk2.config import TextHawk2Config
from models.families.texthawk2.image_processor import Pixels, cut_tiles
from models.families.texthawk2.tiling import TilingLimits, num_tiles


class CutImage(NamedTuple):
    """Tiles (T, S, S, 3), uint8, thumbnail first, and the (rows, columns) of the others."""

    tiles: Pixels
    grid: tuple[int, int]


def tiling_limits(config: TextHawk2Config) -> TilingLimits:
    """The grids that a model was made for."""
    return TilingLimits(tile_size=config.tile_size, max_area=config.max_tiles, max_side=config.max_tiles_side)


class TileProcessor:
    """In place of a Hugging Face processor: it knows images only, and leaves them uint8.

    So one byte per value crosses the border between processes, and the model scales on its device.
    """

    def __init__(self, limits: TilingLimits) -> None:
        self._limits = limits

    def __call__(
        self, images: Sequence[object] = (), return_tensors: str | None = None, **ignored: Any
    ) -> BatchFeature:
        """``pixel_values``: tiles of all images one after another, uint8 (T, S, S, 3); ``grids``: int64 (images, 2).

        Raises: ValueError: neither a picture nor tiles that fit their grid.
        """
        cut = [self._cut(image) for image in images]
        return BatchFeature(
            {
                "pixel_values": torch.cat([torch.from_numpy(image.tiles) for image in cut]),
                "grids": torch.tensor([image.grid for image in cut], dtype=torch.int64),
            }
        )

    def _cut(self, image: object) -> CutImage:
        if isinstance(image, Image.Image):
            return CutImage(*cut_tiles(np.asarray(image.convert("RGB")), self._limits))
        if not isinstance(image, tuple):
            raise ValueError(f"an image is a picture or its tiles, not {type(image).__name__}")
        image = CutImage(*image)
        self._check(image)
        # Shared memory of another process may be read-only, which torch does not take.
        return image if image.tiles.flags.writeable else image._replace(tiles=image.tiles.copy())

    def _check(self, image: CutImage) -> None:
        (rows, columns), side = image.grid, self._limits.tile_size
        shape = (num_tiles(image.grid), side, side, 3)
        fits = 1 <= rows <= self._limits.max_side and 1 <= columns <= self._limits.max_side
        if not fits or rows * columns > self._limits.max_area:
            raise ValueError(f"a grid of {rows} x {columns} tiles is over the model's limit of {self._limits.max_area}")
        if image.tiles.dtype != np.uint8 or image.tiles.shape != shape:
            raise ValueError(f"tiles of a {rows} x {columns} grid are uint8 {shape}, not {image.tiles.shape}")
