"""How vLLM turns images and prompts of TextHawk2 into tensors and token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import BatchFeature
from vllm.config.multimodal import MultiModalDummyOptions
from vllm.inputs import MultiModalDataDict
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import MultiModalDataItems
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdateDetails,
)

from models.families.texthawk2.config import TextHawk2Config
from models.families.texthawk2.tiling import best_grid, image_tokens, num_tiles
from models.families.texthawk2.tokens import IMAGE
from models.families.texthawk2.vllm_images import TileProcessor, tiling_limits


class TextHawk2Info(BaseProcessingInfo):
    """Limits of the model that vLLM plans with."""

    def get_hf_config(self) -> TextHawk2Config:
        """The model's configuration."""
        config: TextHawk2Config = self.ctx.get_hf_config(TextHawk2Config)
        return config

    def get_hf_processor(self, **kwargs: object) -> TileProcessor:
        """Ours; it has no options."""
        return TileProcessor(tiling_limits(self.get_hf_config()))

    def get_supported_mm_processor_kwargs(self) -> dict[str, set[str]]:
        """No options."""
        return {}

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """As many images as the deployment allows."""
        return {"image": None}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """Of the largest image, with the tokens around it. vLLM need not process one to find out."""
        config = self.get_hf_config()
        return {"image": tiling_limits(config).max_tiles * config.tokens_per_tile + 2}


class TextHawk2DummyInputs(BaseDummyInputsBuilder[TextHawk2Info]):
    """Inputs for vLLM's own warm-up."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """One placeholder per image."""
        return IMAGE * mm_counts.get("image", 0)

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: MultiModalDummyOptions
    ) -> MultiModalDataDict:
        """Pictures of the largest grid."""
        limits = tiling_limits(self.info.get_hf_config())
        side = min(limits.max_side, int(limits.max_area**0.5))
        rows, columns = best_grid(side * limits.tile_size, side * limits.tile_size, limits)
        images = self._get_dummy_images(
            width=columns * limits.tile_size,
            height=rows * limits.tile_size,
            num_images=mm_counts.get("image", 0),
            overrides=mm_options.get("image"),
        )
        return {"image": images}


class TextHawk2MultiModalProcessor(BaseMultiModalProcessor[TextHawk2Info]):
    """One ``<image>`` of a prompt becomes begin, sixteen ``<image>`` per tile, end."""

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        grids = hf_inputs.get("grids", torch.empty(0, 2, dtype=torch.int64))
        counts = torch.tensor([num_tiles(grid) for grid in grids.tolist()], dtype=torch.int64)
        return {
            "pixel_values": MultiModalFieldConfig.flat_from_sizes("image", counts),
            "grids": MultiModalFieldConfig.batched("image", keep_on_cpu=True),
        }

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptReplacement]:
        config = self.info.get_hf_config()

        def expanded(index: int) -> Any:
            rows, columns = out_mm_kwargs["image"][index]["grids"].data.tolist()
            middle = [config.image_token_id] * image_tokens((rows, columns), config.tokens_per_tile)
            ids = [config.vision_start_token_id, *middle, config.vision_end_token_id]
            return PromptUpdateDetails.select_token_id(ids, config.image_token_id)

        return [PromptReplacement(modality="image", target=[config.image_token_id], replacement=expanded)]
