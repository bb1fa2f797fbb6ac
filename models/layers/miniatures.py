"""Configurations of networks in miniature that several families build, as diffusers writes them. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

SDXL_UNET: Mapping[str, Any] = MappingProxyType(
    {
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
    }
)
"""It reads two text encoders of 16 and 24 channels."""
AUTOENCODER: Mapping[str, Any] = MappingProxyType(
    {
        "_class_name": "AutoencoderKL",
        "sample_size": 32,
        "latent_channels": 4,
        "block_out_channels": [16, 16],
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": 8,
    }
)
"""Four channels, half as many pixels a side. How latents are scaled is each family's."""
SDXL_SCALING = 0.13025
"""Of SDXL's latents."""
