"""Shapes of the nano model: the published architecture at a small width."""

from __future__ import annotations

from dataclasses import replace

from models.families.vdit.config import OpenSoraConfig
from models.families.vdit.vae_config import CausalVaeConfig

FRAMES = 29
"""8 latent frames, as in the shorter published checkpoint."""
LONG_FRAMES = 61
"""16 latent frames: the longer variant, of the same weights."""
FPS = 8
LATENT_CHANNELS = 8
"""Twice the published 4: at this width 4 do not hold the shape of a moving object (docs/experiments.md)."""
CAPTION_CHANNELS = 96
MAX_WORDS = 24


def nano_vae(scale_factor: float = 1.0, latent_channels: int = LATENT_CHANNELS) -> CausalVaeConfig:
    """The autoencoder."""
    return CausalVaeConfig(
        z_channels=latent_channels,
        embed_dim=latent_channels,
        hidden_size=16,
        hidden_size_mult=(1, 2, 3, 3),
        num_res_blocks=1,
        norm_num_groups=4,
        resolution=64,
        scale_factor=scale_factor,
    )


def with_small_decoder(vae: CausalVaeConfig) -> CausalVaeConfig:
    """The autoencoder of the same latents with a decoder of a quarter of the multiplications; not shipped yet.

    One residual block a level instead of two, none at full resolution, where most of the work was; no convolution over
    time at the last doubling of frames but that of the block behind it.
    """
    return replace(
        vae,
        decoder_hidden_size_mult=(2, 2, 2, 3),
        decoder_res_blocks=(0, 1, 1, 1),
        decoder_temporal_upsample=("", "", "TimeUpsample2x", "TimeUpsampleRes2x"),
        decoder_conv_out="Conv2d",
    )


def nano_transformer() -> OpenSoraConfig:
    """The diffusion transformer; teacher and student have the same shape."""
    return OpenSoraConfig(
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_attention_heads=4,
        attention_head_dim=48,
        num_layers=5,
        cross_attention_dim=192,
        caption_channels=CAPTION_CHANNELS,
        sample_size=(8, 8),
        sample_size_t=8,
        interpolation_scale_thw=(1.0, 1.0, 1.0),
    )
