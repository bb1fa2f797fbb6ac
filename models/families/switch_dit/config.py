"""What a Switch-DiT is made of, and the noise that its checkpoints were trained with. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchDitConfig:
    """Shape of the network. Latents are square, ``latent_side`` wide, and cut into patches of ``patch_size``.

    ``curve``: of the noise over the ``num_timesteps``. ``taken``: experts of each timestep, the likeliest ones.
    Raises: ValueError: a shape that cannot be built.
    """

    width: int
    depth: int
    num_heads: int
    curve: Literal["cosine", "linear"]
    num_experts: int = 3
    taken: int = 2
    latent_channels: int = 4
    latent_side: int = 32
    patch_size: int = 2
    num_classes: int = 1000
    num_timesteps: int = 1000

    def __post_init__(self) -> None:
        if self.width % self.num_heads or self.width % 4 or self.latent_side % self.patch_size:
            raise ValueError(f"{self} does not divide: width by 4 and by heads, latent_side by patch_size")
        if not 1 <= self.taken <= self.num_experts:
            raise ValueError(f"{self.taken} of {self.num_experts} experts are taken")
        if self.curve not in ("cosine", "linear"):
            raise ValueError(f"curve is {self.curve!r}; choose cosine or linear, as the checkpoint was trained")

    @property
    def grid_side(self) -> int:
        """Patches along a side."""
        return self.latent_side // self.patch_size

    @property
    def num_tokens(self) -> int:
        """Of a picture."""
        return self.grid_side**2

    @property
    def null_class(self) -> int:
        """The class that stands for none: unconditional, for guidance."""
        return self.num_classes
