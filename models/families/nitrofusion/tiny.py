"""The networks of SDXL in miniature, for checks and demonstrations: random weights, pictures of 32x32 pixels."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from models.layers.miniatures import AUTOENCODER, SDXL_SCALING, SDXL_UNET

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
        "unet": dict(SDXL_UNET),
        "vae": {**AUTOENCODER, "scaling_factor": SDXL_SCALING},
        "text_encoder": _clip(16, "CLIPTextModel"),
        "text_encoder_2": _clip(24, "CLIPTextModelWithProjection"),
    }
)
