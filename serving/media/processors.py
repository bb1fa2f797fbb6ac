"""What a model makes of an image: its family's processor, and how many tiles that cuts it into.

Families are loaded inside the functions: a decode worker loads what its model needs, and nothing here imports torch.
"""

from __future__ import annotations

from functools import partial

from serving.media.prepare import Processor


def load_processor(model_id: str) -> Processor:
    """Build the processor of a served model: one square for a classifier, tiles for a chat model.

    Raises:
        ValueError: unknown model id, or its family takes no images.
    """
    from models.registry import CHAT_MODELS, find

    if chat := CHAT_MODELS.get(model_id):
        from models.families.texthawk2.image_processor import cut_tiles

        return partial(cut_tiles, limits=chat.tiling)
    family, variant = find(model_id)
    if family.prepare is None:
        raise ValueError(f"{model_id} takes no images")
    processor: Processor = family.prepare.load()(variant)
    return processor


def count_tiles(model_id: str, width: int, height: int) -> int:
    """Tiles of an image of that size, thumbnail included, before it is decoded; 1 for a model that does not tile.

    Turning the image by EXIF does not change the number.

    Raises:
        ValueError: the model cannot tile such an image; the text is fit for the client.
    """
    from models.registry import CHAT_MODELS

    if chat := CHAT_MODELS.get(model_id):
        from models.families.texthawk2.tiling import best_grid, num_tiles

        return num_tiles(best_grid(height, width, chat.tiling))
    return 1
