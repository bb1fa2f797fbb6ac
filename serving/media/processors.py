"""What belongs to a model: its processor, and how many tiles it cuts an image into.

``models`` is imported inside the functions: a decode worker loads what its model needs, and nothing here imports torch.
"""

from __future__ import annotations

from functools import partial

from serving.media.prepare import Processor


def load_processor(model_id: str) -> Processor:
    """Build the processor of a served model: one square for a classifier, tiles for a chat model.

    Raises:
        ValueError: unknown model id.
    """
    from models.registry import CHAT_MODELS, get_spec

    if chat := CHAT_MODELS.get(model_id):
        from models.families.texthawk2.image_processor import cut_tiles

        return partial(cut_tiles, limits=chat.tiling)
    from models.families.dyn_perceiver.processor import Processor as DynPerceiverProcessor

    return DynPerceiverProcessor(get_spec(model_id))


def count_tiles(model_id: str, width: int, height: int) -> int:
    """Tiles of an image of that size, thumbnail included, before it is decoded; 1 for a model that does not tile.

    Turning the image by EXIF does not change the number.

    Raises:
        ValueError: the model cannot tile such an image; the text is fit for the client.
    """
    from models.families.texthawk2.tiling import best_grid, num_tiles
    from models.registry import CHAT_MODELS

    chat = CHAT_MODELS.get(model_id)
    return 1 if chat is None else num_tiles(best_grid(height, width, chat.tiling))
