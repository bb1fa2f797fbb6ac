"""TextHawk2 as a Hugging Face model: SigLIP, connector, Qwen2.

Parameter names: ``vision_tower.*`` as in transformers' SiglipVisionModel, ``language_model.*`` as in its
Qwen2ForCausalLM, ``connector.*`` ours (the authors published no code and no weights).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel, Qwen2ForCausalLM, SiglipVisionModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from models.checkpoint import load_pretrained
from models.contract import Variant
from models.families.texthawk2.config import TextHawk2Config
from models.families.texthawk2.connector import Connector
from models.families.texthawk2.position import ScalablePositionEmbedding
from models.families.texthawk2.vision import normalise, read_levels


class TextHawk2PreTrainedModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """What transformers wants to know of every model of the family."""

    config_class = TextHawk2Config
    base_model_prefix = ""
    main_input_name = "input_ids"
    _supports_sdpa = True
    _no_split_modules = ["SiglipEncoderLayer", "ResamplerLayer", "Qwen2DecoderLayer"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise one module of the connector; tower and language model know their own ways."""
        if isinstance(module, ScalablePositionEmbedding):
            module.reset_parameters()
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=float(self.config.text_config.initializer_range))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.RMSNorm):
            nn.init.ones_(module.weight)


class TextHawk2ForConditionalGeneration(TextHawk2PreTrainedModel, GenerationMixin):
    """Reads images, answers in text.

    ``pixel_values``: uint8 tiles (T, S, S, 3) of all images one after another; ``grids``: (images, 2) rows and columns.
    ``input_ids`` (B, L) holds ``image_token_id`` once for every token of an image.
    """

    _tied_weights_keys = {  # noqa: RUF012
        "language_model.lm_head.weight": "language_model.model.embed_tokens.weight"
    }

    def __init__(self, config: TextHawk2Config) -> None:
        super().__init__(config)
        self.vision_tower = SiglipVisionModel(config.vision_config)
        self.connector = Connector(config)
        self.language_model = Qwen2ForCausalLM(config.text_config)  # type: ignore[no-untyped-call]
        self.post_init()  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> nn.Module:
        """Token embeddings of the language model."""
        embeddings: nn.Module = self.language_model.get_input_embeddings()
        return embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace them."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The language model's head."""
        head: nn.Module = self.language_model.lm_head
        return head

    def encode_images(self, pixel_values: Tensor, grids: Tensor | Sequence[tuple[int, int]]) -> list[Tensor]:
        """uint8 tiles (T, S, S, 3) to one (16 * tiles, language width) tensor per image."""
        config = cast(TextHawk2Config, self.config)
        return encode_images(self.vision_tower, self.connector, config, pixel_values, grids)

    def embed(self, input_ids: Tensor, pixel_values: Tensor | None = None, grids: Tensor | None = None) -> Tensor:
        """Token embeddings (B, L, width) with the images' in their places.

        Raises: ValueError: the number of image tokens is not that of the images.
        """
        embeds: Tensor = self.get_input_embeddings()(input_ids)
        if pixel_values is None or grids is None:
            return embeds
        images = torch.cat(self.encode_images(pixel_values, grids)).to(embeds.dtype)
        places = input_ids == self.config.image_token_id
        if int(places.sum()) != len(images):
            raise ValueError(f"the prompt has {int(places.sum())} image tokens, the images make {len(images)}")
        return embeds.masked_scatter(places[..., None], images)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        grids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """See ``Qwen2ForCausalLM.forward``; images are only read with ``pixel_values``."""
        if inputs_embeds is None:
            assert input_ids is not None, "one of input_ids and inputs_embeds is needed"
            inputs_embeds = self.embed(input_ids, pixel_values, grids)
        outputs: CausalLMOutputWithPast = self.language_model(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, labels=labels, **kwargs
        )
        return outputs

    def prepare_inputs_for_generation(self, input_ids: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Images go in with the first step; later ones find them in the KV cache."""
        images = {name: kwargs.pop(name, None) for name in ("pixel_values", "grids")}
        is_first = kwargs.get("is_first_iteration") or not kwargs.get("use_cache", True)
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)  # type: ignore[misc]
        return {**inputs, **(images if is_first else {})}


def encode_images(
    tower: SiglipVisionModel,
    connector: Connector,
    config: TextHawk2Config,
    pixel_values: Tensor,
    grids: Tensor | Sequence[tuple[int, int]],
) -> list[Tensor]:
    """The same for every engine: uint8 tiles (T, S, S, 3) to one (16 * tiles, language width) tensor per image."""
    pairs = [(int(rows), int(columns)) for rows, columns in grids]
    weight = tower.embeddings.patch_embedding.weight
    pixels = normalise(pixel_values.to(weight.device), weight.dtype)
    return connector(read_levels(tower, pixels, config.vision_levels), pairs)  # type: ignore[no-any-return]


def build(
    variant: Variant, device: str = "cpu", dtype: str = "float32", *, random_weights: bool = False
) -> TextHawk2ForConditionalGeneration:
    """The network of a variant; with random weights, the same each time, where they are asked for.

    Raises: OSError, ValueError: no folder, or it does not hold such a model, each tensor and no other.
    """
    number = getattr(torch, dtype)
    if random_weights:
        with torch.random.fork_rng(devices=[]), torch.device(device):
            torch.manual_seed(0)
            network: Any = TextHawk2ForConditionalGeneration(TextHawk2Config(**variant.config)).to(number)
    else:
        if variant.weights is None:
            raise ValueError(f"{variant.id} has no weights; convert a checkpoint (vireo convert texthawk2)")
        network = load_pretrained(TextHawk2ForConditionalGeneration, variant.weights, number)
    return cast(TextHawk2ForConditionalGeneration, network.to(device).eval())
