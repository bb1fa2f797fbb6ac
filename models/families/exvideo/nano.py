"""The networks of exvideo-nano, as its folder has them."""

from __future__ import annotations

from types import MappingProxyType

from models.families.exvideo.published import SCHEDULER

NANO = MappingProxyType(
    {
        "unet": {
            "_class_name": "UNetSpatioTemporalConditionModel",
            "sample_size": 8,
            "in_channels": 8,
            "out_channels": 4,
            "block_out_channels": [64, 64],
            "down_block_types": ["CrossAttnDownBlockSpatioTemporal"] * 2,
            "up_block_types": ["CrossAttnUpBlockSpatioTemporal"] * 2,
            "layers_per_block": 1,
            "num_attention_heads": [2, 2],
            "cross_attention_dim": 64,
            "addition_time_embed_dim": 32,
            "projection_class_embeddings_input_dim": 96,
            "transformer_layers_per_block": 1,
            "num_frames": 8,
        },
        "vae": {
            "_class_name": "AutoencoderKLTemporalDecoder",
            "sample_size": 32,
            "latent_channels": 4,
            "block_out_channels": [32, 64, 64],
            "down_block_types": ["DownEncoderBlock2D"] * 3,
            "layers_per_block": 1,
            "scaling_factor": 0.97865,
            "force_upcast": False,
        },
        "image_encoder": {
            "architectures": ["CLIPVisionModelWithProjection"],
            "model_type": "clip_vision_model",
            "hidden_size": 64,
            "intermediate_size": 128,
            "projection_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 224,
            "patch_size": 28,
            "hidden_act": "gelu",
        },
        "scheduler": dict(SCHEDULER),
    }
)
