"""Shapes of the nano model: the published architecture at a hundredth of its width."""

from __future__ import annotations

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


def nano_config(
    vocab_size: int,
    image_id: int,
    vision_start_id: int,
    vision_end_id: int,
    box_start_id: int,
    eos_id: int,
    pad_id: int,
) -> TextHawk2Config:
    """The nano model around a tokenizer of ``vocab_size`` tokens."""
    return TextHawk2Config(
        vision_config=VISION,
        text_config={
            "vocab_size": vocab_size,
            "hidden_size": 256,
            "intermediate_size": 704,
            "num_hidden_layers": 4,
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
        resampler_intermediate_size=512,
        max_tiles=12,
        max_tiles_side=6,
        image_token_id=image_id,
        vision_start_token_id=vision_start_id,
        vision_end_token_id=vision_end_id,
        box_start_token_id=box_start_id,
        architectures=["TextHawk2ForConditionalGeneration"],
    )
