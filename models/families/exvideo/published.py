"""Configurations of the published networks, as their folders have them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

SCHEDULER: Mapping[str, Any] = MappingProxyType(
    {
        "_class_name": "EulerDiscreteScheduler",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "interpolation_type": "linear",
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction",
        "sigma_max": 700.0,
        "sigma_min": 0.002,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "timestep_type": "continuous",
        "use_karras_sigmas": True,
    }
)

SVD_XT = MappingProxyType(
    {
        "unet": {
            "_class_name": "UNetSpatioTemporalConditionModel",
            "sample_size": 96,
            "in_channels": 8,
            "out_channels": 4,
            "block_out_channels": [320, 640, 1280, 1280],
            "down_block_types": [*["CrossAttnDownBlockSpatioTemporal"] * 3, "DownBlockSpatioTemporal"],
            "up_block_types": ["UpBlockSpatioTemporal", *["CrossAttnUpBlockSpatioTemporal"] * 3],
            "layers_per_block": 2,
            "num_attention_heads": [5, 10, 20, 20],
            "cross_attention_dim": 1024,
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 768,
            "transformer_layers_per_block": 1,
            "num_frames": 25,
        },
        "vae": {
            "_class_name": "AutoencoderKLTemporalDecoder",
            "sample_size": 768,
            "latent_channels": 4,
            "block_out_channels": [128, 256, 512, 512],
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "layers_per_block": 2,
            "scaling_factor": 0.18215,
            "force_upcast": True,
        },
        "image_encoder": {
            "architectures": ["CLIPVisionModelWithProjection"],
            "model_type": "clip_vision_model",
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "projection_dim": 1024,
            "num_hidden_layers": 32,
            "num_attention_heads": 16,
            "image_size": 224,
            "patch_size": 14,
            "hidden_act": "gelu",
        },
        "scheduler": dict(SCHEDULER),
    }
)
