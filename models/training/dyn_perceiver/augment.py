"""Pictures of digits, from pristine to barely legible, made from ink coverage. Vectorised, seeded by a generator.

Legend: B batch, G glyph side (32), strength 0..1 per sample: 0 changes nothing, 1 uses the full range of every effect.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

BLUR_RADIUS = 3
WARP_KNOTS, WARP_PIXELS = 4, 0.8
"""Of the grid of random shifts that bends a glyph: its side, and the standard deviation of a shift."""


def clean(ink: Tensor) -> Tensor:
    """Light ink on a dark ground and nothing else: float (B, G, G) -> uint8 (B, G, G, 3)."""
    return _to_bytes(ink[:, None].expand(-1, 3, -1, -1))


def warp(ink: Tensor, generator: torch.Generator) -> Tensor:
    """Bend half of the glyphs, as if another hand had written them (Simard et al. 2003): float (B, G, G) -> same.

    Only training does this: it stands in for writers that 1,078 digits do not show.
    """
    side = ink.shape[-1]
    coarse = torch.randn(len(ink), 2, WARP_KNOTS, WARP_KNOTS, generator=generator)
    bent = torch.rand(len(ink), generator=generator) < 0.5
    shift = functional.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=True)
    shift = shift * bent[:, None, None, None] * (2 * WARP_PIXELS / side)
    identity = torch.eye(2, 3).expand(len(ink), 2, 3)
    grid = functional.affine_grid(identity, [len(ink), 1, side, side], align_corners=False)
    return functional.grid_sample(ink[:, None], grid + shift.permute(0, 2, 3, 1), align_corners=False)[:, 0]


def render(ink: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Draw digits with random pose, stroke, colours, background, blur, occlusion and noise.

    Args:
        ink: float32 (B, G, G) in 0..1.
        strength: float32 (B,) in 0..1.
        generator: source of all randomness.

    Returns: uint8 (B, G, G, 3).
    """
    dice = _Dice(len(ink), strength, generator)
    ink = _stroke(_pose(ink, dice), dice)
    pictures = _occlude(_colour(ink, dice), dice)
    return _to_bytes(_noise(_blur(pictures, dice), dice))


class _Dice:
    """Random numbers per sample; the effects' ranges scale with each sample's strength."""

    def __init__(self, batch: int, strength: Tensor, generator: torch.Generator) -> None:
        self.batch, self.strength, self.generator = batch, strength, generator

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(self.batch, *shape, generator=self.generator)

    def signed(self, limit: float) -> Tensor:
        """(B,) in +-limit, scaled by strength."""
        return (2 * self.uniform() - 1) * limit * self.strength

    def happens(self, probability: float) -> Tensor:
        return self.uniform() < probability * self.strength


def _pose(ink: Tensor, dice: _Dice) -> Tensor:
    """Turn up to 20 degrees, shear, zoom 0.5 to 1.15, shift up to 20% of the side."""
    angle, shear = dice.signed(math.radians(20)), dice.signed(0.25)
    zoom_out = 1.0 + dice.strength * (dice.uniform() * 1.15 - 0.15)
    squeeze = 1.0 + dice.signed(0.2)
    cos, sin = torch.cos(angle) * zoom_out, torch.sin(angle) * zoom_out
    rows = torch.stack((cos * squeeze, shear - sin, dice.signed(0.4), sin, cos, dice.signed(0.4)), 1)
    grid = functional.affine_grid(rows.view(-1, 2, 3), [dice.batch, 1, *ink.shape[1:]], align_corners=False)
    return functional.grid_sample(ink[:, None], grid, align_corners=False)[:, 0]


def _stroke(ink: Tensor, dice: _Dice) -> Tensor:
    """Make half of the strokes crisp, thinner or thicker."""
    edge = 0.45 + dice.signed(0.2)
    slope = 1.5 + 4.5 * dice.uniform()
    crisp = ((ink - edge[:, None, None]) * slope[:, None, None] + 0.5).clamp(0, 1)
    return torch.where(dice.happens(0.7)[:, None, None], crisp, ink)


def _colour(ink: Tensor, dice: _Dice) -> Tensor:
    """(B, G, G) -> (B, 3, G, G): ink and ground of any two colours that differ in brightness; either may be lighter."""
    ground = dice.uniform(3) * 0.8 + 0.2 * dice.uniform(1)
    bright = ground.mean(1)
    contrast = 0.75 - 0.5 * dice.strength * dice.uniform()
    is_lighter = torch.where((bright + contrast > 1) | (bright - contrast < 0), bright < 0.5, dice.uniform() < 0.5)
    target = torch.where(is_lighter, bright + contrast, bright - contrast)
    paint = target[:, None] + (dice.uniform(3) - 0.5) * 0.3
    plain = ~dice.happens(0.8)
    negative = dice.uniform() < 0.5 * (dice.strength > 0)
    ground = torch.where(plain[:, None], negative[:, None].float(), ground)
    paint = torch.where(plain[:, None], 1 - negative[:, None].float(), paint)
    field = ground[:, :, None, None] + _texture(ink.shape[1], dice)
    return field * (1 - ink[:, None]) + paint[:, :, None, None] * ink[:, None]


def _texture(side: int, dice: _Dice) -> Tensor:
    """Smooth uneven lighting (B, 3, side, side) around zero."""
    coarse = torch.randn(dice.batch, 3, 4, 4, generator=dice.generator)
    smooth = functional.interpolate(coarse, size=(side, side), mode="bilinear", align_corners=True)
    amount = 0.12 * dice.strength * dice.happens(0.6)
    return smooth * amount[:, None, None, None]


def _occlude(pictures: Tensor, dice: _Dice) -> Tensor:
    """Up to two boxes of any colour, each up to a third of the side long."""
    side = pictures.shape[-1]
    position = torch.arange(side)
    for _ in range(2):
        size = 2 + dice.strength[:, None] * dice.uniform(2) * side / 3
        start = dice.uniform(2) * (side - size)
        inside = (position >= start[..., None]) & (position < (start + size)[..., None])
        box = (inside[:, 0, :, None] & inside[:, 1, None, :])[:, None] & dice.happens(0.4)[:, None, None, None]
        pictures = torch.where(box, dice.uniform(3)[:, :, None, None], pictures)
    return pictures


def _blur(pictures: Tensor, dice: _Dice) -> Tensor:
    """Gaussian blur of up to 1.6 pixels, a kernel per sample."""
    sigma = 0.05 + dice.strength * dice.uniform() * 1.55 * dice.happens(0.7)
    offsets = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1)
    kernel = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)[:, None]
    channels, side = dice.batch * 3, pictures.shape[-1]
    flat = functional.pad(pictures.reshape(1, channels, side, side), [BLUR_RADIUS] * 4, mode="replicate")
    flat = functional.conv2d(flat, kernel[:, :, :, None], groups=channels)
    flat = functional.conv2d(flat, kernel[:, :, None, :], groups=channels)
    return flat.view(dice.batch, 3, side, side)


def _noise(pictures: Tensor, dice: _Dice) -> Tensor:
    """Gaussian noise with a standard deviation of up to 0.22 of full scale, half of it without colour."""
    colour = torch.randn(pictures.shape, generator=dice.generator)
    grey = torch.randn(pictures[:, :1].shape, generator=dice.generator)
    amount = 0.22 * dice.strength * dice.uniform() * dice.happens(0.8)
    mixed = torch.where((dice.uniform() < 0.5)[:, None, None, None], colour, grey)
    return pictures + mixed * amount[:, None, None, None]


def _to_bytes(pictures: Tensor) -> Tensor:
    """Float (B, 3, G, G) in 0..1 -> uint8 (B, G, G, 3)."""
    return (pictures.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
