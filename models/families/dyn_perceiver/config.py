"""Shapes of every variant as plain data: no torch, no I/O.

Source of the published numbers: the official code and the commands of its README (see docs/models/dyn-perceiver.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

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


CONFIGS: Mapping[str, DynPerceiverConfig] = MappingProxyType(
    {
        "regnety-800mf": DynPerceiverConfig(
            backbone=RegNetConfig(stem_width=32, widths=(64, 144, 320, 784), depths=(1, 3, 8, 2), group_width=16),
            num_latents=128,
            latent_depths=(3, 3, 9, 6),
        ),
        "resnet50-x0375": DynPerceiverConfig(
            backbone=ResNetConfig(width=0.375), num_latents=128, latent_depths=(3, 3, 9, 3)
        ),
        "mobilenetv3-x075": DynPerceiverConfig(
            backbone=MobileNetV3Config(width=0.75), num_latents=128, latent_depths=(3, 3, 9, 9)
        ),
        # Little is spent before exit 1 and most of the rest between exits 1 and 2: stages 1 and 2 are one narrow block
        # each, and their latents only read the features.
        "nano": DynPerceiverConfig(
            backbone=RegNetConfig(
                stem_width=16, widths=(16, 32, 80, 160), depths=(1, 1, 7, 4), strides=(2, 2, 1, 2), group_width=16
            ),
            num_latents=32,
            latent_depths=(0, 0, 1, 4),
            num_heads=(1, 1, 2, 4),
            latent_widening=2,
            pool_side=4,
            input_size=32,
            num_classes=10,
        ),
    }
)


def config_for(variant: str) -> DynPerceiverConfig:
    """Look up a variant.

    Raises:
        ValueError: unknown variant; the message lists the known ones.
    """
    try:
        return CONFIGS[variant]
    except KeyError:
        raise ValueError(f"unknown Dynamic Perceiver variant {variant!r}; known: {', '.join(CONFIGS)}") from None
