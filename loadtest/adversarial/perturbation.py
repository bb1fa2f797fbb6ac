"""Where an attacker may move: a bound around each picture, or a patch that all pictures share.

Legend: B pictures, H W height and width. Pixels are floats in 0..1; a server sees bytes (``quantised``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from loadtest.adversarial.victim import Pictures

EPS = 8 / 255
"""The usual bound of a raw pixel's change."""
Start = Literal["zero", "uniform", "normal", "signs", "random"]


class Space(Protocol):
    """Parameters of a perturbation, and what they do to pictures."""

    @property
    def is_shared(self) -> bool:
        """Whether all pictures have one perturbation."""
        ...

    def start(self, kind: Start, clean: Tensor, seed: int) -> Tensor:
        """Parameters to begin with, of pictures (B, H, W, 3)."""
        ...

    def pixels(self, clean: Tensor, theta: Tensor) -> Tensor:
        """Pictures (B, H, W, 3), differentiable in ``theta``."""
        ...

    def project(self, clean: Tensor, theta: Tensor) -> Tensor:
        """The nearest parameters that are allowed."""
        ...


@dataclass(frozen=True, slots=True)
class Additive:
    """A change of each pixel by at most ``eps``. ``theta`` (B, H, W, 3)."""

    eps: float = EPS
    is_shared: bool = False

    def start(self, kind: Start, clean: Tensor, seed: int) -> Tensor:
        """``uniform`` and ``signs`` lie within the bound; ``normal`` does not: as Verbose Images' code begins, with
        standard deviation 1 where pixels run from -1 to 1. ``random``: what makes a picture of noise of each."""
        rows = [self._start(kind, picture, torch.Generator().manual_seed(seed + i)) for i, picture in enumerate(clean)]
        return torch.stack(rows)

    def _start(self, kind: Start, picture: Tensor, generator: torch.Generator) -> Tensor:
        if kind == "zero":
            return torch.zeros_like(picture)
        if kind == "normal":
            return 0.5 * torch.randn(picture.shape, generator=generator)
        uniform = torch.rand(picture.shape, generator=generator)
        if kind == "random":
            return uniform - picture
        centred = 2.0 * uniform - 1.0
        return self.eps * (centred.sign() if kind == "signs" else centred)

    def pixels(self, clean: Tensor, theta: Tensor) -> Tensor:
        """See ``Space``."""
        return clean + theta

    def project(self, clean: Tensor, theta: Tensor) -> Tensor:
        """Within the bound, and within what a pixel can be."""
        return (clean + theta.clamp(-self.eps, self.eps)).clamp(0.0, 1.0) - clean


@dataclass(frozen=True, slots=True)
class Patch:
    """A square of ``side`` pixels in the lower right corner, without a bound, the same on all pictures (SlowFormer,
    CVPR 2024, has one of 2% of the area). ``theta`` (1, side, side, 3)."""

    side: int
    is_shared: bool = True

    def start(self, kind: Start, clean: Tensor, seed: int) -> Tensor:
        """Noise, whatever ``kind``."""
        return torch.rand((1, self.side, self.side, 3), generator=torch.Generator().manual_seed(seed))

    def pixels(self, clean: Tensor, theta: Tensor) -> Tensor:
        """See ``Space``."""
        height, width = clean.shape[1:3]
        place = (0, 0, width - self.side, 0, height - self.side, 0)
        patch = torch.nn.functional.pad(theta, place)
        mask = torch.nn.functional.pad(torch.ones_like(theta), place)
        return clean * (1.0 - mask) + patch

    def project(self, clean: Tensor, theta: Tensor) -> Tensor:
        """What a pixel can be."""
        return theta.clamp(0.0, 1.0)


def quantised(pixels: Tensor) -> Pictures:
    """What a file of 8 bits holds, and a server sees. A bound of whole grey levels is kept."""
    bytes_: Pictures = (255.0 * pixels.detach()).round().clamp(0, 255).to(torch.uint8).numpy()
    return bytes_


def as_pixels(pictures: Pictures) -> Tensor:
    """Bytes (B, H, W, 3) to floats in 0..1."""
    return torch.from_numpy(np.asarray(pictures)).float() / 255.0
