"""Configuration of a TextHawk2 model, in Hugging Face's form."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import PreTrainedConfig, Qwen2Config, SiglipVisionConfig

MODEL_TYPE = "texthawk2"
ARCHITECTURE = "TextHawk2ForConditionalGeneration"


class TextHawk2Config(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """Shapes of a TextHawk2 model.

    ``vision_levels``: depths of the vision tower that the resampler reads, counted in layers from the input (14, 18, 22
    and 26 of SigLIP-SO400M's 27). ``resampler_routing``: for each resampler layer, the index into ``vision_levels`` of
    the features it attends to: deep to shallow (TextHawk, arXiv 2404.09204, section 3.4; the four-layer table of
    TextHawk2 is not printed, [3, 2, 1, 0] is our reading of "deep-to-shallow").
    ``tile_size``: side of a tile in pixels, equal to the tower's image size. ``max_tiles``: largest rows x columns of a
    grid; ``max_tiles_side``: largest of either (TextHawk2, section 3.1). ``merge_width``: neighbouring queries of one
    row that become one token of the language model.
    """

    model_type = MODEL_TYPE
    sub_configs: ClassVar[dict[str, type[PreTrainedConfig]]] = {
        "vision_config": SiglipVisionConfig,
        "text_config": Qwen2Config,
    }

    def __init__(
        self,
        vision_config: dict[str, Any] | SiglipVisionConfig | None = None,
        text_config: dict[str, Any] | Qwen2Config | None = None,
        vision_levels: tuple[int, ...] = (14, 18, 22, 26),
        resampler_routing: tuple[int, ...] = (3, 2, 1, 0),
        resampler_hidden_size: int = 1152,
        resampler_num_heads: int = 16,
        resampler_intermediate_size: int = 4304,
        merge_width: int = 4,
        max_tiles: int = 72,
        max_tiles_side: int = 12,
        image_token_id: int = 151_646,
        vision_start_token_id: int = 151_647,
        vision_end_token_id: int = 151_648,
        box_start_token_id: int = 151_649,
        **kwargs: Any,
    ) -> None:
        self.vision_config = _sub_config(vision_config, SiglipVisionConfig, _SO400M)
        self.text_config = _sub_config(text_config, Qwen2Config, _QWEN2_7B)
        self.vision_levels = list(vision_levels)
        self.resampler_routing = list(resampler_routing)
        self.resampler_hidden_size = resampler_hidden_size
        self.resampler_num_heads = resampler_num_heads
        self.resampler_intermediate_size = resampler_intermediate_size
        self.merge_width = merge_width
        self.max_tiles = max_tiles
        self.max_tiles_side = max_tiles_side
        self.image_token_id = image_token_id
        self.vision_start_token_id = vision_start_token_id
        self.vision_end_token_id = vision_end_token_id
        self.box_start_token_id = box_start_token_id
        kwargs.setdefault("tie_word_embeddings", self.text_config.tie_word_embeddings)
        super().__init__(**kwargs)
        self._check()

    @property
    def tile_size(self) -> int:
        """Side of a tile in pixels."""
        return int(self.vision_config.image_size)

    @property
    def patches_side(self) -> int:
        """Patches along one side of a tile."""
        return self.tile_size // int(self.vision_config.patch_size)

    @property
    def queries_side(self) -> int:
        """Queries along one side of a tile, after the 2x2 pool."""
        return self.patches_side // 2

    @property
    def tokens_per_tile(self) -> int:
        """Tokens of the language model that one tile becomes."""
        return self.queries_side**2 // self.merge_width

    def _check(self) -> None:
        levels, routing = self.vision_levels, self.resampler_routing
        if not levels or not 0 < min(levels) <= max(levels) <= self.vision_config.num_hidden_layers:
            raise ValueError(f"vision_levels {levels} must lie in 1..{self.vision_config.num_hidden_layers}")
        if not routing or not 0 <= min(routing) <= max(routing) < len(levels):
            raise ValueError(f"resampler_routing {routing} must index the {len(levels)} vision_levels")
        if self.patches_side % 2 or self.queries_side % self.merge_width:
            raise ValueError(
                f"a tile of {self.patches_side}x{self.patches_side} patches cannot be pooled 2x2 and merged "
                f"1x{self.merge_width}; choose image_size / patch_size as a multiple of {2 * self.merge_width}"
            )


def _sub_config(given: Any, cls: type[PreTrainedConfig], default: dict[str, Any]) -> Any:
    if isinstance(given, cls):
        return given
    return cls(**(default if given is None else given))


_SO400M: dict[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "vision_use_head": False,
}
_QWEN2_7B: dict[str, Any] = {
    "vocab_size": 152_704,
    "hidden_size": 3584,
    "intermediate_size": 18_944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32_768,
    "rope_theta": 1_000_000.0,
    "tie_word_embeddings": False,
    "architectures": ["Qwen2ForCausalLM"],
}
