"""What a model makes of an image: its family's processor, and how many tiles that cuts it into.

A decode worker loads what its model needs, and nothing here imports torch.
"""

from __future__ import annotations

from models.registry import find
from serving.media.prepare import Processor


def load_processor(model_id: str) -> Processor:
    """Build the processor of a served model: one square for a classifier, tiles for a chat model.

    Raises:
        ValueError: unknown model id, or its family takes no images.
    """
    family, variant = find(model_id)
    if family.prepare is None:
        raise ValueError(f"{model_id} takes no images")
    processor: Processor = family.prepare.load()(variant)
    return processor


def count_tiles(model_id: str, width: int, height: int) -> int:
    """Tiles of an image of that size, thumbnail included, before it is decoded; 1 for a model that does not tile, or
    that is unknown: its processor will say so.

    Turning the image by EXIF does not change the number.

    Raises:
        ValueError: the model cannot tile such an image; the text is fit for the client.
    """
    try:
        family, variant = find(model_id)
    except ValueError:
        return 1
    return int(family.part("tiles")(variant, width, height)) if "tiles" in family.parts else 1
