"""The networks of SDXL in miniature, for checks and demonstrations: random weights, pictures of 32x32 pixels."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

VOCABULARY_SIZE = 514
"""Every byte, every byte at the end of a word, and the tokens that begin and end a prompt."""


def _clip(hidden_size: int, architecture: str) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "model_type": "clip_text_model",
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "projection_dim": hidden_size,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
        "vocab_size": VOCABULARY_SIZE,
        "bos_token_id": 0,
        "eos_token_id": 2,
    }


TINY = MappingProxyType(
    {
        "model_index": {"_class_name": "StableDiffusionXLPipeline"},
        "unet": {
            "_class_name": "UNet2DConditionModel",
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": [16, 32],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "attention_head_dim": [2, 4],
            "transformer_layers_per_block": [1, 1],
            "use_linear_projection": True,
            "cross_attention_dim": 40,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 72,
        },
        "vae": {
            "_class_name": "AutoencoderKL",
            "sample_size": 32,
            "latent_channels": 4,
            "block_out_channels": [16, 16],
            "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
            "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "scaling_factor": 0.13025,
        },
        "text_encoder": _clip(16, "CLIPTextModel"),
        "text_encoder_2": _clip(24, "CLIPTextModelWithProjection"),
    }
)
