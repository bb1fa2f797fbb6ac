"""Image processor and tokenizer together, in Hugging Face's form. Needs ``transformers``."""

from __future__ import annotations

from typing import Any, cast

from transformers.image_utils import make_flat_list_of_images
from transformers.processing_utils import ProcessorMixin

from models.families.texthawk2.tiling import TOKENS_PER_TILE, image_tokens
from models.families.texthawk2.tokens import CHAT_TEMPLATE, IMAGE, VISION_END, VISION_START


class TextHawk2Processor(ProcessorMixin):
    """Text and pictures to the model's inputs.

    Every ``<image>`` in the text becomes ``<vision_start>``, one ``<image>`` per token of its picture, and
    ``<vision_end>``. A call returns ``input_ids``, ``attention_mask`` and, with pictures, ``pixel_values``, ``grids``
    and ``num_tiles`` of the image processor. The text is trusted: special tokens in it count. Text from users goes
    through ``models.families.texthawk2.prompt``.

    Raises:
        ValueError: a call with pictures whose text has not as many ``<image>``.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        tokens_per_tile: int = TOKENS_PER_TILE,
        chat_template: str | None = None,
    ) -> None:
        template = chat_template or CHAT_TEMPLATE
        super().__init__(image_processor, tokenizer, chat_template=template)  # type: ignore[no-untyped-call]
        self.tokens_per_tile = tokens_per_tile
        self.image_token = IMAGE
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE)

    def replace_image_token(self, image_inputs: Any, image_idx: int, **_: Any) -> str:
        """What the ``<image>`` of one picture becomes."""
        rows, cols = (int(value) for value in image_inputs["grids"][image_idx])
        return VISION_START + IMAGE * image_tokens((rows, cols), self.tokens_per_tile) + VISION_END

    def validate_inputs(
        self, images: Any = None, text: Any = None, videos: Any = None, audio: Any = None, **kwargs: Any
    ) -> None:
        """Refuse what would pair pictures with the wrong places, and kinds of media that the model does not know."""
        super().validate_inputs(images, text, videos, audio, **kwargs)
        if videos is not None or audio is not None:
            raise ValueError("TextHawk2 reads images and text only; leave videos and audio out")
        if images is None or text is None:
            return
        count, given = sum(piece.count(IMAGE) for piece in text), len(cast(list[Any], make_flat_list_of_images(images)))
        if count != given:
            raise ValueError(f"text has {count} {IMAGE} and {given} images were given; give one per image")

    @property
    def model_input_names(self) -> list[str]:
        """Keys of a call's result."""
        return [*self.tokenizer.model_input_names, *self.image_processor.model_input_names]
