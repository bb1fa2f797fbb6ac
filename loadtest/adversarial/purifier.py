"""What the guard does to a suspect's picture, as an attacker who knows it computes it: the same bytes, and a gradient.

The forward pass is that of ``serving.guard.purify`` (a test holds them together); the backward pass is that of the
resize, with JPEG, rounding and coarse levels as if they changed nothing (straight-through; A. Athalye et al., 2018).

Legend: H W height and width. Pixels are floats in 0..1.
"""

from __future__ import annotations

import io
import random
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from loadtest.adversarial.perturbation import as_pixels, quantised
from loadtest.adversarial.victim import Pictures

_RESAMPLING = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
_SCALES = (0.6, 0.95)
_QUALITIES = (50, 90)
_SQUEEZED_SCALE = 0.75
_SQUEEZED_STEP = 16


@dataclass(frozen=True, slots=True)
class Purification:
    """One draw. Sizes in pixels; ``quality``: of the JPEG."""

    width: int
    height: int
    down: Image.Resampling
    up: Image.Resampling
    quality: int

    @classmethod
    def drawn(cls, height: int, width: int, draw: random.Random) -> Purification:
        """From the guard's own distribution, in its order."""
        small_width, small_height = (max(1, round(side * draw.uniform(*_SCALES))) for side in (width, height))
        down, up = draw.choice(_RESAMPLING), draw.choice(_RESAMPLING)
        return cls(small_width, small_height, down, up, draw.randint(*_QUALITIES))

    def bytes_of(self, picture: Pictures) -> Pictures:
        """The copy of one picture (H, W, 3)."""
        height, width = picture.shape[:2]
        small = Image.fromarray(picture).resize((self.width, self.height), self.down)
        file = io.BytesIO()
        small.resize((width, height), self.up).save(file, "JPEG", quality=self.quality)
        return np.array(Image.open(file).convert("RGB"))

    def __call__(self, pixels: Tensor) -> Tensor:
        """The copy of one picture (H, W, 3), differentiable."""
        smooth = _resized(pixels, (self.height, self.width), self.down, self.up)
        return _straight_through(smooth, self.bytes_of(quantised(pixels)))


def squeezed(pixels: Tensor) -> Tensor:
    """The guard's coarse copy of one picture (H, W, 3), differentiable."""
    height, width = pixels.shape[:2]
    small = (max(1, round(height * _SQUEEZED_SCALE)), max(1, round(width * _SQUEEZED_SCALE)))
    page = Image.fromarray(quantised(pixels)).resize(small[::-1], Image.Resampling.BILINEAR)
    levels = np.asarray(page.resize((width, height), Image.Resampling.BILINEAR))
    coarse: Pictures = levels // _SQUEEZED_STEP * _SQUEEZED_STEP + np.uint8(_SQUEEZED_STEP // 2)
    smooth = _resized(pixels, small, Image.Resampling.BILINEAR, Image.Resampling.BILINEAR)
    return _straight_through(smooth, coarse)


def _straight_through(smooth: Tensor, hard: Pictures) -> Tensor:
    return smooth + (as_pixels(hard) - smooth).detach()


def _resized(pixels: Tensor, small: tuple[int, int], down: Image.Resampling, up: Image.Resampling) -> Tensor:
    """To ``small`` (height, width) and back."""
    page = pixels.permute(2, 0, 1)[None]
    for size, kind in ((small, down), (pixels.shape[:2], up)):
        page = functional.interpolate(page, size=tuple(size), mode=_mode(kind), antialias=True, align_corners=False)
    out: Tensor = page[0].permute(1, 2, 0)
    return out


def _mode(kind: Image.Resampling) -> Literal["bilinear", "bicubic"]:
    """Torch has no Lanczos, to which the bicubic one is nearest."""
    return "bilinear" if kind is Image.Resampling.BILINEAR else "bicubic"


def copies(pixels: Tensor, draws: int, seed: int) -> list[Tensor]:
    """``draws`` copies of pictures (B, H, W, 3), each picture of each under a draw of its own."""
    draw = random.Random(seed)
    height, width = pixels.shape[1:3]
    return [torch.stack([Purification.drawn(height, width, draw)(picture) for picture in pixels]) for _ in range(draws)]
