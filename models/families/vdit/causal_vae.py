"""CausalVAE of Open-Sora-Plan v1.2: 4x8x8 compression with convolutions that look back in time only.

Source: official code github.com/PKU-YuanGroup/Open-Sora-Plan at tag v1.2.0, opensora/models/causalvideovae. Names of
parameters are those of the published checkpoint. The first frame stands alone, so that 4k + 1 frames become k + 1.

Legend: B batch, C channels, T frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.families.vdit.vae_config import CausalVaeConfig
from models.families.vdit.vae_layers import (
    ATTENTION,
    CONVOLUTIONS,
    DOWN,
    RESNETS,
    TIME_DOWN,
    TIME_UP,
    UP,
    CausalConv3d,
    Norm,
    maker,
)


class Posterior:
    """A diagonal Gaussian over latents. ``mean`` and ``logvar`` (B, 4, t, h, w), not scaled."""

    def __init__(self, moments: Tensor) -> None:
        self.mean, logvar = moments.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)

    def mode(self) -> Tensor:
        """The likeliest latents."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Latents drawn from it."""
        noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def kl(self) -> Tensor:
        """Mean over elements of the divergence from a unit Gaussian."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar).mean()


class Level(nn.Module):
    """One resolution: residual blocks, attention where the config asks for it, and a change of scale at the end."""

    def __init__(self, blocks: list[nn.Module], attentions: list[nn.Module]) -> None:
        super().__init__()
        self.block = nn.ModuleList(blocks)
        self.attn = nn.ModuleList(attentions)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) to the next level's shape."""
        for index, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[index](x)
        for name in ("downsample", "time_downsample", "upsample", "time_upsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


class Middle(nn.Module):
    """Residual, attention, residual, at the lowest resolution."""

    def __init__(self, resnet: Callable[..., nn.Module], attention: Callable[..., nn.Module], width: int, groups: int):
        super().__init__()
        self.block_1 = resnet(width, width, groups)
        self.attn_1 = attention(width, groups)
        self.block_2 = resnet(width, width, groups)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        return self.block_2(self.attn_1(self.block_1(x)))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """Pixels (B, 3, T, H, W) to moments (B, 2 z, t, h, w)."""

    def __init__(self, config: CausalVaeConfig) -> None:
        super().__init__()
        groups, width = config.norm_num_groups, config.hidden_size
        self.conv_in = maker(CONVOLUTIONS, config.encoder_conv_in)(3, width, 3, padding=1)
        self.down = nn.ModuleList()
        resolution = config.resolution
        for level, wide in enumerate(config.encoder_widths):
            resnet = maker(RESNETS, config.encoder_resnet_blocks[level])
            blocks = [resnet(width if k == 0 else wide, wide, groups) for k in range(config.num_res_blocks)]
            attends = resolution in config.attn_resolutions
            make = maker(ATTENTION, config.encoder_attention)
            stage = Level(blocks, [make(wide, groups) for _ in blocks] if attends else [])
            if config.encoder_spatial_downsample[level]:
                stage.downsample = maker(DOWN, config.encoder_spatial_downsample[level])(wide, wide)
                resolution //= 2
            if config.encoder_temporal_downsample[level]:
                stage.time_downsample = maker(TIME_DOWN, config.encoder_temporal_downsample[level])(wide, wide)
            self.down.append(stage)
            width = wide
        self.mid = Middle(
            maker(RESNETS, config.encoder_mid_resnet), maker(ATTENTION, config.encoder_attention), width, groups
        )
        self.norm_out = Norm(groups, width)
        out = 2 * config.z_channels if config.double_z else config.z_channels
        self.conv_out = maker(CONVOLUTIONS, config.encoder_conv_out)(width, out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.conv_in(x)
        for stage in self.down:
            x = stage(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Latents (B, z, t, h, w) to pixels (B, 3, T, H, W)."""

    def __init__(self, config: CausalVaeConfig) -> None:
        super().__init__()
        groups, widths = config.norm_num_groups, config.decoder_widths
        width, levels = widths[-1], len(widths)
        self.conv_in = maker(CONVOLUTIONS, config.decoder_conv_in)(config.z_channels, width, 3, padding=1)
        self.mid = Middle(
            maker(RESNETS, config.decoder_mid_resnet), maker(ATTENTION, config.decoder_attention), width, groups
        )
        resolution = config.resolution // 2 ** (levels - 1)
        stages: list[nn.Module] = []
        for level in reversed(range(levels)):
            wide = widths[level]
            resnet = maker(RESNETS, config.decoder_resnet_blocks[level])
            blocks = [resnet(width if k == 0 else wide, wide, groups) for k in range(config.decoder_blocks[level])]
            attends = resolution in config.attn_resolutions
            make = maker(ATTENTION, config.decoder_attention)
            stage = Level(blocks, [make(wide, groups) for _ in blocks] if attends else [])
            if config.decoder_spatial_upsample[level]:
                stage.upsample = maker(UP, config.decoder_spatial_upsample[level])(wide, wide)
                resolution *= 2
            if config.decoder_temporal_upsample[level]:
                stage.time_upsample = maker(TIME_UP, config.decoder_temporal_upsample[level])(wide, wide)
            stages.insert(0, stage)
            width = wide
        self.up = nn.ModuleList(stages)
        self.norm_out = Norm(groups, width)
        self.conv_out = maker(CONVOLUTIONS, config.decoder_conv_out)(width, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """See the class."""
        x = self.mid(self.conv_in(z))
        for stage in reversed(self.up):
            x = stage(x)
        return self.conv_out(F.silu(self.norm_out(x)))  # type: ignore[no-any-return]


class CausalVae(nn.Module):
    """The autoencoder. ``scale_factor`` belongs to whoever feeds a diffusion model; nothing is scaled here."""

    def __init__(self, config: CausalVaeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        if config.use_quant_layer:
            self.quant_conv = CausalConv3d(2 * config.z_channels, 2 * config.embed_dim, 1)
            self.post_quant_conv = CausalConv3d(config.embed_dim, config.z_channels, 1)

    def encode(self, pixels: Tensor) -> Posterior:
        """Pixels (B, 3, T, H, W) in -1..1 to a posterior over latents.

        Raises: ValueError: sizes that the strides do not divide.
        """
        _check_shape(pixels, 3)
        self.config.latent_grid(*pixels.shape[2:])
        return Posterior(self.encode_moments(pixels))

    def encode_moments(self, pixels: Tensor) -> Tensor:
        """The posterior's mean and log-variance, one behind the other in the channels."""
        moments: Any = self.encoder(pixels)
        return self.quant_conv(moments) if self.config.use_quant_layer else moments  # type: ignore[no-any-return]

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, 4, t, h, w), not scaled, to pixels (B, 3, 4 (t - 1) + 1, 8 h, 8 w), about -1..1.

        Raises: ValueError: not five dimensions, or another number of channels.
        """
        self.check_latents(latents)
        z = self.post_quant_conv(latents) if self.config.use_quant_layer else latents
        return self.decoder(z)  # type: ignore[no-any-return]

    def check_latents(self, latents: Tensor) -> None:
        """Raises: ValueError: not (B, C, t, h, w) of this VAE's channels."""
        _check_shape(latents, self.config.embed_dim if self.config.use_quant_layer else self.config.z_channels)


def _check_shape(x: Tensor, channels: int) -> None:
    if x.ndim != 5 or x.shape[1] != channels or 0 in x.shape:
        raise ValueError(f"shape {tuple(x.shape)}; it must be (batch, {channels}, frames, rows, columns)")
