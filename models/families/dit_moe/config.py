"""What a DiT-MoE is made of, and how its checkpoints were trained to be sampled. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

AttentionLayout: TypeAlias = Literal["plain", "normed"]
"""``plain``: timm's attention, in S and B. ``normed``: queries and keys normalised in each head, in XL and G."""
Process: TypeAlias = Literal["ddpm", "rectified_flow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DitMoeConfig:
    """Shape of the network. Latents are square, ``latent_side`` wide, and cut into patches of ``patch_size``.

    ``expert_ratio``, ``shared_ratio``: hidden units of an expert, and of what all tokens pass, for each of ``width``.
    ``predicts_variance``: twice the channels come out. Raises: ValueError: a shape that cannot be built.
    """

    width: int
    depth: int
    num_heads: int
    num_experts: int
    top_k: int = 2
    expert_ratio: float = 4.0
    shared_ratio: float = 2.0
    attention: AttentionLayout = "plain"
    latent_channels: int = 4
    latent_side: int = 32
    patch_size: int = 2
    predicts_variance: bool = True
    num_classes: int = 1000

    def __post_init__(self) -> None:
        if self.width % self.num_heads or self.width % 4 or self.latent_side % self.patch_size:
            raise ValueError(f"{self} does not divide: width by 4 and by heads, latent_side by patch_size")
        if not 1 <= self.top_k <= self.num_experts:
            raise ValueError(f"top_k is {self.top_k} of {self.num_experts} experts")

    @property
    def expert_width(self) -> int:
        """Hidden units of one expert."""
        return round(self.width * self.expert_ratio)

    @property
    def shared_width(self) -> int:
        """Hidden units that all tokens pass."""
        return round(self.width * self.shared_ratio)

    @property
    def grid_side(self) -> int:
        """Patches along a side."""
        return self.latent_side // self.patch_size

    @property
    def num_tokens(self) -> int:
        """Of a picture."""
        return self.grid_side**2

    @property
    def out_channels(self) -> int:
        """Channels that come out."""
        return self.latent_channels * (2 if self.predicts_variance else 1)

    def num_parameters(self, num_experts: int) -> int:
        """With so many experts in each layer, the others left out."""
        width, patch = self.width, self.patch_size**2
        attention = 4 * width * (width + 1) + (4 * width // self.num_heads if self.attention == "normed" else 0)
        experts = 3 * width * (num_experts * self.expert_width + self.shared_width) + width * self.num_experts
        block = attention + experts + 6 * width * (width + 1)
        patches = width * (patch * self.latent_channels + 1) + (width + 1) * patch * self.out_channels
        conditions = width * (257 + width + 1 + self.num_classes + 1) + 2 * width * (width + 1)
        return self.depth * block + patches + conditions + self.num_tokens * width

    @property
    def null_class(self) -> int:
        """The class that stands for none: unconditional, for guidance."""
        return self.num_classes


NANO = DitMoeConfig(
    width=128,
    depth=6,
    num_heads=4,
    num_experts=8,
    expert_ratio=1.0,
    shared_ratio=1.0,
    attention="normed",
    latent_side=16,
    predicts_variance=False,
    num_classes=90,
)
