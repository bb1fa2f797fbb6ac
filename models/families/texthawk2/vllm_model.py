"""TextHawk2 in vLLM: the vision tower and the connector of ``models.families.texthawk2``, and vLLM's own Qwen2."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import SiglipVisionModel
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import SupportsMultiModal, SupportsPP
from vllm.model_executor.models.utils import AutoWeightsLoader, init_vllm_registered_model, maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY

from models.families.texthawk2.config import TextHawk2Config
from models.families.texthawk2.connector import Connector
from models.families.texthawk2.modeling import encode_images
from models.families.texthawk2.tokens import IMAGE
from models.families.texthawk2.vllm_processing import TextHawk2DummyInputs, TextHawk2Info, TextHawk2MultiModalProcessor


@MULTIMODAL_REGISTRY.register_processor(
    TextHawk2MultiModalProcessor, info=TextHawk2Info, dummy_inputs=TextHawk2DummyInputs
)
class TextHawk2ForConditionalGeneration(nn.Module, SupportsMultiModal, SupportsPP):
    """Parameter names are those of ``modeling.py``; vLLM's Qwen2 fuses its own while it loads."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config: TextHawk2Config = vllm_config.model_config.hf_config
        self.config = config
        self.encoder_seconds = 0.0
        with self._mark_tower_model(vllm_config, "image"):  # type: ignore[operator]
            self.vision_tower = SiglipVisionModel(config.vision_config)
            self.connector = Connector(config)
        with self._mark_language_model(vllm_config):  # type: ignore[operator]
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=config.text_config,
                prefix=maybe_prefix(prefix, "language_model"),
                architectures=["Qwen2ForCausalLM"],
            )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """What a chat template without image parts would write."""
        return IMAGE if modality == "image" else None

    def embed_multimodal(
        self, *, pixel_values: Tensor | None = None, grids: Tensor | None = None, **ignored: object
    ) -> list[Tensor]:
        """uint8 tiles (T, S, S, 3) and grids (images, 2) to one (16 * tiles, width) tensor per image."""
        if pixel_values is None or grids is None:
            return []
        started = time.perf_counter()
        embeddings = encode_images(self.vision_tower, self.connector, self.config, pixel_values, grids)
        self.encoder_seconds += time.perf_counter() - started
        return embeddings

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **ignored: object,
    ) -> Any:
        """Hidden states of the scheduled tokens; images have been merged into ``inputs_embeds`` by vLLM."""
        if intermediate_tensors is not None:
            inputs_embeds = None
        return self.language_model.model(input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Logits of the last token of each request."""
        logits: Tensor | None = self.language_model.compute_logits(hidden_states)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Every parameter of ours must be in the folder; vLLM checks that."""
        loaded: set[str] = AutoWeightsLoader(self).load_weights(weights)
        return loaded
