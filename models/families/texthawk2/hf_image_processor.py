"""The image processor in Hugging Face's form: ``cut_tiles`` over a list of pictures. Needs ``transformers``.

Unlike most of its kind it gives bytes: the model normalises them on its own device. It does not fetch: file names and
URLs are refused, so that no path from a request to a fetcher exists here.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from PIL import Image
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import make_flat_list_of_images
from transformers.processing_utils import ImagesKwargs

from models.families.texthawk2.image_processor import Pixels, cut_tiles
from models.families.texthawk2.tiling import TilingLimits


class TextHawk2ImagesKwargs(ImagesKwargs, total=False):
    """What a call may set beside ``return_tensors``: see ``TextHawk2ImageProcessor``."""

    tile_size: int
    max_tiles: int
    max_tiles_side: int


class TextHawk2ImageProcessor(BaseImageProcessor):
    """Pictures to tiles.

    ``tile_size``: side S of a tile in pixels. ``max_tiles``: rows x columns of a grid, without the thumbnail.
    ``max_tiles_side``: rows, and columns.
    """

    model_input_names = ["pixel_values", "grids", "num_tiles"]  # noqa: RUF012 (transformers' own declaration)
    valid_kwargs = TextHawk2ImagesKwargs

    def __init__(self, tile_size: int = 224, max_tiles: int = 72, max_tiles_side: int = 12, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tile_size = tile_size
        self.max_tiles = max_tiles
        self.max_tiles_side = max_tiles_side
        self._limits()

    def preprocess(self, images: Any, return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
        """Cut pictures: one, a list or nested lists of PIL images or uint8 arrays (H, W, 3).

        Returns ``pixel_values`` uint8 (all tiles, S, S, 3), ``grids`` (n, 2) rows and columns, ``num_tiles`` (n).

        Raises:
            ValueError: something else than pictures, an impossible picture, or an argument that is not understood.
        """
        limits = self._limits(**kwargs)
        flat = cast(list[Any], make_flat_list_of_images(self.fetch_images(images)))
        if not flat:
            raise ValueError("no image was given; leave images out instead of passing an empty list")
        cut = [cut_tiles(to_rgb(image), limits) for image in flat]
        data = {
            "pixel_values": np.concatenate([tiles for tiles, _ in cut]),
            "grids": np.array([grid for _, grid in cut], np.int64),
            "num_tiles": np.array([len(tiles) for tiles, _ in cut], np.int64),
        }
        return BatchFeature(data=data, tensor_type=return_tensors)

    def fetch_images(self, images: Any) -> Any:
        """Return pictures unchanged.

        Raises:
            ValueError: a string, which elsewhere would be a path or a URL.
        """
        if isinstance(images, str):
            raise ValueError("images must be decoded, not named; open the file or URL first")
        if isinstance(images, list | tuple):
            for image in images:
                self.fetch_images(image)
        return images

    def _limits(self, **given: Any) -> TilingLimits:
        limits = {"tile_size": self.tile_size, "max_tiles": self.max_tiles, "max_tiles_side": self.max_tiles_side}
        for name, value in given.items():
            if value is not None and name not in limits:
                raise ValueError(f"argument {name} is not understood; this processor has {', '.join(limits)}")
            if value is not None:
                limits[name] = value
        return TilingLimits(
            tile_size=limits["tile_size"], max_area=limits["max_tiles"], max_side=limits["max_tiles_side"]
        )


def to_rgb(image: Any) -> Pixels:
    """A PIL image as uint8 RGB (H, W, 3), transparency over white as the server's decoder does it; arrays unchanged."""
    if not isinstance(image, Image.Image):
        return np.asarray(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return np.asarray(Image.alpha_composite(white, layer).convert("RGB"))
    return np.asarray(image.convert("RGB"))
