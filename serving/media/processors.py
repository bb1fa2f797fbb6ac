"""What a model makes of an image: its family's processor, and how many tiles that cuts it into.

A decode worker loads what its model needs, and nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from models.contract import Family, Variant
from models.io import ClipIO, ImageIO, with_max_tiles
from models.registry import family_for
from serving.media.prepare import Processor


@dataclass(frozen=True, slots=True)
class Processors:
    """Makes the processors of served models. Travels to decode workers as it is.

    ``served``: model id to the name of its family and its variant, which were resolved at the start.
    """

    served: Mapping[str, tuple[str, Variant]]

    def __call__(self, model_id: str, max_tiles: int | None = None) -> Processor:
        """Build the processor of a model: one square for a classifier, tiles for a chat model (no more than the request
        allows), the picture as it is for one that makes pictures or clips of it.

        Raises:
            ValueError: no such model is served, or its family takes no images.
        """
        family, variant = self._find(model_id)
        if family.prepare is None and isinstance(variant.io, ImageIO | ClipIO) and variant.io.takes_picture:
            return np.ascontiguousarray
        if family.prepare is None:
            raise ValueError(f"{model_id} takes no images")
        processor: Processor = family.prepare.load()(with_max_tiles(variant, max_tiles))
        return processor

    def count_tiles(self, model_id: str, width: int, height: int, max_tiles: int | None = None) -> int:
        """Tiles of an image of that size, thumbnail included, before it is decoded; 1 for a model that does not tile.

        Turning the image by EXIF does not change the number.

        Raises:
            ValueError: the model does not take such an image; the text is fit for the client.
        """
        family, variant = self._find(model_id)
        if isinstance(variant.io, ImageIO):
            variant.io.check_picture(width, height)
        if "tiles" not in family.parts:
            return 1
        return int(family.part("tiles")(with_max_tiles(variant, max_tiles), width, height))

    def _find(self, model_id: str) -> tuple[Family, Variant]:
        if model_id not in self.served:
            raise ValueError(f"model {model_id!r} is not served here")
        name, variant = self.served[model_id]
        return family_for(name, variant), variant


def one_tile(model_id: str, width: int, height: int, max_tiles: int | None = None) -> int:
    """For models that do not tile."""
    return 1
