"""What dit-moe-nano is trained on: one coloured digit or shape on a light ground, 64x64, drawn from a seed.

Digits come from the fonts that matplotlib and Pillow ship; some fonts never appear in training. Position, size,
rotation, shade and ground differ from picture to picture. A class is a colour and a thing.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from models.training.dyn_perceiver.digits import HELD_OUT_FONTS, TRAIN_FONTS, draw_text

SIDE = 64
COLOURS = ("red", "orange", "green", "blue", "purple", "black")
SHAPES = ("circle", "square", "triangle", "cross", "star")
THINGS = (*"0123456789", *SHAPES)
NUM_CLASSES = len(COLOURS) * len(THINGS)
_RGB = {
    "red": (0.85, 0.10, 0.12),
    "orange": (0.97, 0.58, 0.08),
    "green": (0.12, 0.62, 0.22),
    "blue": (0.12, 0.32, 0.85),
    "purple": (0.56, 0.16, 0.68),
    "black": (0.12, 0.12, 0.13),
}
_MASK = 96
"""Side of the masks that things are drawn from; a thing fills 80% of it."""
_SUPERSAMPLING = 2


class Pictures(NamedTuple):
    """``pixels`` float32 (N, 3, 64, 64) in -1..1; ``labels`` int64 (N,), numbers of classes."""

    pixels: Tensor
    labels: Tensor


def class_number(colour: str, thing: str) -> int:
    """Of a class: colours are the slower index."""
    return COLOURS.index(colour) * len(THINGS) + THINGS.index(thing)


def class_name(number: int) -> str:
    """As a prompt says it: "green 7", "red star"."""
    return f"{COLOURS[number // len(THINGS)]} {THINGS[number % len(THINGS)]}"


def draw(count: int, seed: int, *, held_out: bool = False, labels: Tensor | None = None) -> Pictures:
    """Pictures of random classes, or of ``labels``. ``held_out``: digits in fonts that training never shows."""
    random = torch.Generator().manual_seed(seed)
    if labels is None:
        labels = torch.randint(NUM_CLASSES, (count,), generator=random)
    parts = [_draw_some(part, random, held_out) for part in torch.split(labels, 512)]
    return Pictures(torch.cat(parts), labels)


def as_bytes(pixels: Tensor) -> NDArray[np.uint8]:
    """(N, 3, H, W) in -1..1 to uint8 (N, H, W, 3)."""
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _draw_some(labels: Tensor, random: torch.Generator, held_out: bool) -> Tensor:
    count = len(labels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand((count, *shape), generator=random)

    masks, fonts = _masks(held_out)
    things = labels % len(THINGS)
    font = (torch.rand(count, generator=random) * fonts).long()
    chosen = masks[things, torch.where(things < 10, font, 0)]
    # The grid goes from places of the picture to those of the mask, so that its matrix is the inverse of the motion.
    extent = uniform(28.0, 42.0) / 0.8 / SIDE
    angle = uniform(-math.pi / 16, math.pi / 16)
    shift = uniform(-0.2, 0.2, 2)
    cos, sin = angle.cos() / extent, angle.sin() / extent
    turn = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)
    matrix = torch.cat([turn, -(turn @ shift[:, :, None])], 2)
    side = SIDE * _SUPERSAMPLING
    grid = F.affine_grid(matrix, [count, 1, side, side], align_corners=False)
    ink = F.avg_pool2d(F.grid_sample(chosen[:, None], grid, align_corners=False), _SUPERSAMPLING)
    colour = torch.tensor([_RGB[name] for name in COLOURS])[labels // len(THINGS)]
    colour = (colour + uniform(-0.05, 0.05, 3)).clamp(0, 1)[:, :, None, None]
    ground = (uniform(0.86, 0.98, 1) + uniform(-0.02, 0.02, 3))[:, :, None, None]
    return (ground + ink * (colour - ground)) * 2 - 1


@cache
def _masks(held_out: bool) -> tuple[Tensor, int]:
    """(things, fonts, mask, mask) in 0..1, and the number of fonts; of shapes all are the same."""
    fonts = HELD_OUT_FONTS if held_out else TRAIN_FONTS
    rows = [[draw_text(thing, font, _MASK) for font in fonts] for thing in THINGS[:10]]
    rows += [[_draw_shape(shape)] * len(fonts) for shape in SHAPES]
    return torch.from_numpy(np.stack([np.stack(row) for row in rows])), len(fonts)


def _draw_shape(shape: str) -> NDArray[np.float32]:
    """Drawn at four times the size and averaged down."""
    side = 4 * _MASK
    image = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(image)
    if shape == "circle":
        pen.ellipse([0.1 * side, 0.1 * side, 0.9 * side, 0.9 * side], fill=255)
    else:
        pen.polygon([(x * side, y * side) for x, y in _outline(shape)], fill=255)
    return np.asarray(image.resize((_MASK, _MASK), Image.Resampling.BOX), np.float32) / 255.0


def _outline(shape: str) -> list[tuple[float, float]]:
    """Corners in 0..1."""
    if shape == "square":
        return [(0.15, 0.15), (0.85, 0.15), (0.85, 0.85), (0.15, 0.85)]
    if shape == "triangle":
        return [(0.5, 0.1), (0.92, 0.86), (0.08, 0.86)]
    if shape == "cross":
        a, b, c, d = 0.1, 0.37, 0.63, 0.9
        return [(b, a), (c, a), (c, b), (d, b), (d, c), (c, c), (c, d), (b, d), (b, c), (a, c), (a, b), (b, b)]
    turns = [math.pi * (number / 5 - 0.5) for number in range(10)]
    return [
        (0.5 + radius * math.cos(turn), 0.52 + radius * math.sin(turn))
        for turn, radius in zip(turns, (0.44, 0.18) * 5, strict=True)
    ]
