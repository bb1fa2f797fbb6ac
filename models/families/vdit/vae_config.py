"""Shape of a CausalVAE: the fields of the published config.json; and of the tiles that it decodes. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

_R2, _R3 = "ResnetBlock2D", "ResnetBlock3D"
_BOTH = "Spatial2xTime2x"  # layers of this name resample time as well as space
_TRAINING_ONLY = frozenset({"dropout", "q_conv", "loss_params", "loss_type", "lr"})


@dataclass(frozen=True, kw_only=True)
class CausalVaeConfig:
    """Defaults are the published CausalVAEModel_4x8x8 of v1.1, which resamples space and time one after the other.

    ``published()`` is that of v1.2 (D4_4x8x8), which does both at once. ``norm_num_groups`` is ours (published: 32
    everywhere); ``scale_factor`` multiplies latents before diffusion. Ours, too, are ``decoder_hidden_size_mult`` and
    ``decoder_res_blocks``, for a decoder smaller than its encoder; published: its widths, and one block more a level.

    Raises: ValueError: lists of different lengths, widths that the groups do not divide, or a decoder that does not
        undo the encoder's strides.
    """

    hidden_size: int = 128
    z_channels: int = 4
    embed_dim: int = 4
    hidden_size_mult: tuple[int, ...] = (1, 2, 4, 4)
    attn_resolutions: tuple[int, ...] = ()
    resolution: int = 256
    num_res_blocks: int = 2
    double_z: bool = True
    use_quant_layer: bool = True
    encoder_conv_in: str = "Conv2d"
    encoder_conv_out: str = "CausalConv3d"
    encoder_attention: str = "AttnBlock3DFix"
    encoder_resnet_blocks: tuple[str, ...] = (_R2, _R2, _R3, _R3)
    encoder_spatial_downsample: tuple[str, ...] = ("Downsample", "Downsample", "Downsample", "")
    encoder_temporal_downsample: tuple[str, ...] = ("", "TimeDownsampleRes2x", "TimeDownsampleRes2x", "")
    encoder_mid_resnet: str = _R3
    decoder_conv_in: str = "CausalConv3d"
    decoder_conv_out: str = "CausalConv3d"
    decoder_attention: str = "AttnBlock3DFix"
    decoder_resnet_blocks: tuple[str, ...] = (_R3, _R3, _R3, _R3)
    decoder_spatial_upsample: tuple[str, ...] = ("", "SpatialUpsample2x", "SpatialUpsample2x", "SpatialUpsample2x")
    decoder_temporal_upsample: tuple[str, ...] = ("", "", "TimeUpsampleRes2x", "TimeUpsampleRes2x")
    decoder_mid_resnet: str = _R3
    decoder_hidden_size_mult: tuple[int, ...] | None = None
    decoder_res_blocks: tuple[int, ...] | None = None
    norm_num_groups: int = 32
    scale_factor: float = 0.18215

    def __post_init__(self) -> None:
        levels = len(self.hidden_size_mult)
        for name in ("encoder_resnet_blocks", "encoder_spatial_downsample", "encoder_temporal_downsample",
                     "decoder_resnet_blocks", "decoder_spatial_upsample", "decoder_temporal_upsample",
                     "decoder_hidden_size_mult", "decoder_res_blocks"):  # fmt: skip
            entries = getattr(self, name)
            if entries is not None and len(entries) != levels:
                raise ValueError(f"{name} has {len(entries)} entries; hidden_size_mult has {levels}")
        for width in (*self.encoder_widths, *self.decoder_widths):
            if width % self.norm_num_groups:
                raise ValueError(f"norm_num_groups {self.norm_num_groups} does not divide {width} channels")

        for level, blocks in enumerate(self.decoder_blocks[:-1]):
            if not blocks and self.decoder_widths[level] != self.decoder_widths[level + 1]:
                raise ValueError(f"level {level} of the decoder has no block that changes the width; give it one")

        down = _halvings(self.encoder_spatial_downsample, self.encoder_temporal_downsample)
        up = _halvings(self.decoder_spatial_upsample, self.decoder_temporal_upsample)
        if down != up:
            raise ValueError(
                f"the encoder halves space and time {down} times, the decoder doubles them {up} times; "
                "they must be the same"
            )

    @property
    def encoder_widths(self) -> tuple[int, ...]:
        """Channels of each level, full resolution first."""
        return tuple(self.hidden_size * multiple for multiple in self.hidden_size_mult)

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        """Likewise."""
        multiples = self.decoder_hidden_size_mult or self.hidden_size_mult
        return tuple(self.hidden_size * multiple for multiple in multiples)

    @property
    def decoder_blocks(self) -> tuple[int, ...]:
        """Residual blocks of each level."""
        return self.decoder_res_blocks or (self.num_res_blocks + 1,) * len(self.hidden_size_mult)

    @property
    def time_stride(self) -> int:
        """Frames per latent frame, the first one apart."""
        return int(2 ** _halvings(self.encoder_spatial_downsample, self.encoder_temporal_downsample)[1])

    @property
    def space_stride(self) -> int:
        """Pixels per latent pixel, along each side."""
        return int(2 ** sum(map(bool, self.encoder_spatial_downsample)))

    def latent_grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Latent frames, rows and columns of a clip.

        Raises: ValueError: the strides do not divide it.
        """
        if frames < 1 or (frames - 1) % self.time_stride:
            raise ValueError(f"{frames} frames; the count must be {self.time_stride} k + 1")
        if height % self.space_stride or width % self.space_stride or min(height, width) < self.space_stride:
            raise ValueError(f"{width}x{height} pixels; both sides must be multiples of {self.space_stride}")
        return (frames - 1) // self.time_stride + 1, height // self.space_stride, width // self.space_stride

    @classmethod
    def published(cls) -> CausalVaeConfig:
        """CausalVAEModel_D4_4x8x8 of v1.2: space and time are halved in one convolution of stride 2, 2, 2."""
        both_down, both_up = f"{_BOTH}3DDownsample", f"{_BOTH}3DUpsample"
        return cls(
            encoder_spatial_downsample=("Downsample", both_down, both_down, ""),
            encoder_temporal_downsample=("", "", "", ""),
            decoder_spatial_upsample=("", "SpatialUpsample2x", both_up, both_up),
            decoder_temporal_upsample=("", "", "", ""),
        )

    @classmethod
    def from_dict(cls, written: dict[str, Any]) -> CausalVaeConfig:
        """From a config.json. Private fields (leading underscore) and those of training are not ours to use.

        Raises: ValueError: a field that is not known, or pixels of other than 3 channels.
        """
        known = {field.name for field in fields(cls)}
        values = {key: value for key, value in written.items() if not key.startswith("_")}
        for key in ("in_channels", "out_channels"):
            if values.pop(key, 3) != 3:
                raise ValueError(f"{key} of the VAE is {written[key]}; only 3, RGB, is built here")
        values = {key: value for key, value in values.items() if key not in _TRAINING_ONLY}
        unknown = sorted(values.keys() - known)
        if unknown:
            raise ValueError(f"config.json of the VAE has fields that are not known: {', '.join(unknown)}")
        frozen: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**frozen)


@dataclass(frozen=True, kw_only=True)
class VaeTiling:
    """Size of tiles: pixels along a side, latent frames, and the share of a side that neighbours have in common.

    Raises: ValueError: no such tiles.
    """

    side_px: int = 256
    latent_frames: int = 16
    overlap: float = 0.125

    def __post_init__(self) -> None:
        if self.latent_frames < 2:
            raise ValueError(f"latent_frames is {self.latent_frames}; runs share a frame, so it must be at least 2")
        if not 0.0 <= self.overlap <= 0.5:
            raise ValueError(f"overlap is {self.overlap}; it must be in 0..0.5")

    def side(self, config: CausalVaeConfig) -> int:
        """Latent pixels along a side.

        Raises: ValueError: the stride of ``config`` does not divide the tile.
        """
        if self.side_px < config.space_stride or self.side_px % config.space_stride:
            raise ValueError(f"side_px is {self.side_px}; it must be a multiple of {config.space_stride}")
        return self.side_px // config.space_stride

    def step(self, config: CausalVaeConfig) -> int:
        """Latent pixels from one tile to the next."""
        return int(self.side(config) * (1 - self.overlap))

    def blend_px(self, config: CausalVaeConfig) -> int:
        """Pixels that neighbours have in common: whole latents, so that tiles meet whatever ``overlap`` is."""
        return (self.side(config) - self.step(config)) * config.space_stride

    def covers(self, config: CausalVaeConfig, grid: tuple[int, int, int]) -> bool:
        """Whether latents of ``grid`` frames, rows and columns are one tile."""
        side = self.side(config)
        return grid[0] <= self.latent_frames and grid[1] <= side and grid[2] <= side


def _halvings(spatial: tuple[str, ...], temporal: tuple[str, ...]) -> tuple[int, int]:
    """How often space and time change by a factor of two."""
    both = sum(name.startswith(_BOTH) for name in spatial)
    return sum(map(bool, spatial)), sum(map(bool, temporal)) + both
