"""What shapes a Dynamic Perceiver has, as plain data: no torch, no I/O."""

from __future__ import annotations

from dataclasses import dataclass

NUM_STAGES = 4
NUM_EXITS = 4


@dataclass(frozen=True, kw_only=True)
class RegNetConfig:
    """RegNet-Y trunk: per stage the width, the depth and the stride of its first block."""

    stem_width: int
    widths: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    strides: tuple[int, int, int, int] = (2, 2, 2, 2)
    group_width: int
    squeeze_ratio: float = 0.25


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """Bottleneck ResNet with every width scaled by ``width``."""

    width: float
    depths: tuple[int, int, int, int] = (3, 4, 6, 3)


@dataclass(frozen=True, kw_only=True)
class MobileNetV3Config:
    """MobileNetV3-Large with every width scaled by ``width`` and rounded to a multiple of eight."""

    width: float


BackboneConfig = RegNetConfig | ResNetConfig | MobileNetV3Config


@dataclass(frozen=True, kw_only=True)
class DynPerceiverConfig:
    """One Dynamic Perceiver.

    ``num_latents`` tokens enter stage 1 and halve between stages. ``latent_depths`` counts the self-attention layers of
    each stage. ``pool_side`` is the side of the grid that the feature map is averaged to before latents read it.
    """

    backbone: BackboneConfig
    num_latents: int
    latent_depths: tuple[int, int, int, int]
    num_heads: tuple[int, int, int, int] = (1, 2, 4, 8)
    latent_widening: int = 4
    pool_side: int = 7
    input_size: int = 224
    num_classes: int = 1000

    def __post_init__(self) -> None:
        if self.num_latents % 8:
            raise ValueError(f"num_latents {self.num_latents} does not halve three times; use a multiple of 8")

    @property
    def tokens(self) -> tuple[int, int, int, int]:
        """Latent tokens in each stage."""
        return self.num_latents, self.num_latents // 2, self.num_latents // 4, self.num_latents // 8
