"""The networks of SVD in miniature, for checks and demonstrations: random weights, clips of 16x16 pixels."""

from __future__ import annotations

from types import MappingProxyType

TINY = MappingProxyType(
    {
        "unet": {
            "_class_name": "UNetSpatioTemporalConditionModel",
            "sample_size": 8,
            "in_channels": 8,
            "out_channels": 4,
            "block_out_channels": [32, 64],
            "down_block_types": ["CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"],
            "up_block_types": ["UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"],
            "layers_per_block": 1,
            "num_attention_heads": [2, 4],
            "cross_attention_dim": 16,
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 24,
            "transformer_layers_per_block": 1,
            "num_frames": 5,
        },
        "vae": {
            "_class_name": "AutoencoderKLTemporalDecoder",
            "sample_size": 16,
            "latent_channels": 4,
            "block_out_channels": [32, 32],
            "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
            "layers_per_block": 1,
            "scaling_factor": 0.18215,
            "force_upcast": True,
        },
        "image_encoder": {
            "architectures": ["CLIPVisionModelWithProjection"],
            "model_type": "clip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 32,
            "projection_dim": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 224,
            "patch_size": 56,
            "hidden_act": "gelu",
        },
    }
)
