"""Shapes of the nano models: the published architecture at a hundredth of its width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from models.families.texthawk2.config import TextHawk2Config

VISION: dict[str, Any] = {
    "hidden_size": 192,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "image_size": 224,
    "patch_size": 14,
    "vision_use_head": False,
}


@dataclass(frozen=True, slots=True)
class Sizes:
    """What nano models differ in: widths inside their MLPs, and layers of the language model."""

    vision_mlp: int = VISION["intermediate_size"]
    resampler_mlp: int = 512
    text_mlp: int = 704
    text_layers: int = 4


NANO = Sizes()


def config_for(tokenizer: Any, sizes: Sizes = NANO) -> TextHawk2Config:
    """A nano model around a tokenizer that has TextHawk2's tokens."""
    token = tokenizer.convert_tokens_to_ids
    return nano_config(
        vocab_size=len(tokenizer),
        image_id=token("<image>"),
        vision_start_id=token("<vision_start>"),
        vision_end_id=token("<vision_end>"),
        box_start_id=token("<box>"),
        eos_id=token("<|im_end|>"),
        pad_id=token("<|endoftext|>"),
        sizes=sizes,
    )


def nano_config(
    vocab_size: int,
    image_id: int,
    vision_start_id: int,
    vision_end_id: int,
    box_start_id: int,
    eos_id: int,
    pad_id: int,
    sizes: Sizes = NANO,
) -> TextHawk2Config:
    """A nano model with a vocabulary of ``vocab_size`` tokens."""
    return TextHawk2Config(
        vision_config={**VISION, "intermediate_size": sizes.vision_mlp},
        text_config={
            "vocab_size": vocab_size,
            "hidden_size": 256,
            "intermediate_size": sizes.text_mlp,
            "num_hidden_layers": sizes.text_layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_theta": 10_000.0,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": eos_id,
            "pad_token_id": pad_id,
            "architectures": ["Qwen2ForCausalLM"],
        },
        vision_levels=(2, 4),
        resampler_routing=(1, 0),
        resampler_hidden_size=192,
        resampler_num_heads=3,
        resampler_intermediate_size=sizes.resampler_mlp,
        max_tiles=12,
        max_tiles_side=6,
        image_token_id=image_id,
        vision_start_token_id=vision_start_id,
        vision_end_token_id=vision_end_id,
        box_start_token_id=box_start_id,
        architectures=["TextHawk2ForConditionalGeneration"],
    )
