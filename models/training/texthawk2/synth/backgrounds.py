"""Colours and backgrounds. The test split has patterns and colours of its own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.training.texthawk2.synth.fonts import Split

Colour = tuple[int, int, int]
Pixels = NDArray[np.uint8]

_WEIGHTS = (0.299, 0.587, 0.114)


def luminance(colour: Colour) -> float:
    """Brightness, 0..255."""
    return sum(weight * value for weight, value in zip(_WEIGHTS, colour, strict=True))


def random_colour(rng: np.random.Generator) -> Colour:
    """Any colour; one in three is a grey."""
    if rng.random() < 0.33:
        grey = int(rng.integers(256))
        return grey, grey, grey
    red, green, blue = (int(value) for value in rng.integers(256, size=3))
    return red, green, blue


def paper_colour(rng: np.random.Generator, split: Split) -> Colour:
    """Colour of a background: half of them light, the rest any; test papers are tinted differently."""
    if split == "test":
        base = (228, 214, 190) if rng.random() < 0.5 else (196, 214, 230)
        shift = int(rng.integers(-60, 25)) if rng.random() < 0.6 else int(rng.integers(-180, -120))
        return _clipped(base[0] + shift, base[1] + shift, base[2] + shift)
    if rng.random() < 0.5:
        red, green, blue = (int(value) for value in rng.integers(200, 256, size=3))
        return red, green, blue
    return random_colour(rng)


def ink_colour(rng: np.random.Generator, paper: Colour, contrast: float = 90.0) -> Colour:
    """A colour whose brightness differs from the paper's by at least ``contrast`` (at most 127)."""
    for _ in range(8):
        colour = random_colour(rng)
        if abs(luminance(colour) - luminance(paper)) >= contrast:
            return colour
    return (16, 16, 16) if luminance(paper) >= 128 else (240, 240, 240)


def background(rng: np.random.Generator, split: Split, width: int, height: int, paper: Colour) -> Image.Image:
    """An RGB picture around the colour ``paper``, never more than about 30 levels away from it.

    Train and val: plain, gradient, noise, stripes. Test: plain, checks, dots, vignette.
    """
    kind = int(rng.integers(4))
    if kind == 0:
        return Image.new("RGB", (width, height), paper)
    if split == "test":
        return (_checks, _dots, _vignette)[kind - 1](rng, width, height, paper)
    return (_gradient, _noise, _stripes)[kind - 1](rng, width, height, paper)


def _gradient(rng: np.random.Generator, width: int, height: int, paper: Colour) -> Image.Image:
    corners = np.clip(np.asarray(paper) + rng.integers(-30, 31, size=(2, 2, 3)), 0, 255).astype(np.uint8)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR)


def _noise(rng: np.random.Generator, width: int, height: int, paper: Colour) -> Image.Image:
    coarse = int(rng.integers(1, 9))
    shape = (-(-height // coarse), -(-width // coarse), 3)
    grain = np.clip(rng.integers(-24, 25, size=shape, dtype=np.int16) + np.asarray(paper, np.int16), 0, 255)
    picture = Image.fromarray(grain.astype(np.uint8))
    return picture if coarse == 1 else picture.resize((width, height), Image.Resampling.BILINEAR)


def _stripes(rng: np.random.Generator, width: int, height: int, paper: Colour) -> Image.Image:
    period = int(rng.integers(6, 40))
    other = _clipped(*(value + int(rng.integers(-28, 29)) for value in paper))
    upright = rng.random() < 0.5
    band = (np.arange(width if upright else height) // period) % 2
    colours = np.asarray([paper, other], np.uint8)[band]
    row = colours[None] if upright else colours[:, None]
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(row, (height, width, 3))))


def _checks(rng: np.random.Generator, width: int, height: int, paper: Colour) -> Image.Image:
    period = int(rng.integers(8, 33))
    other = _clipped(*(value + int(rng.integers(-24, 25)) for value in paper))
    which = (np.arange(height)[:, None] // period + np.arange(width)[None] // period) % 2
    return Image.fromarray(np.asarray([paper, other], np.uint8)[which])


def _dots(rng: np.random.Generator, width: int, height: int, paper: Colour) -> Image.Image:
    period, radius = int(rng.integers(10, 25)), int(rng.integers(2, 5))
    other = _clipped(*(value + int(rng.integers(-28, 29)) for value in paper))
    down = np.arange(height)[:, None] % period - period // 2
    across = np.arange(width)[None] % period - period // 2
    which = (down * down + across * across <= radius * radius).astype(np.intp)
    return Image.fromarray(np.asarray([paper, other], np.uint8)[which])


def _vignette(rng: np.random.Generator, width: int, height: int, paper: Colour) -> Image.Image:
    depth = float(rng.uniform(10, 30))
    down = np.linspace(-1, 1, height)[:, None] ** 2
    across = np.linspace(-1, 1, width)[None] ** 2
    shade = (down + across) * (depth / 2)
    return Image.fromarray(np.clip(np.asarray(paper) - shade[..., None], 0, 255).astype(np.uint8))


def _clipped(red: int, green: int, blue: int) -> Colour:
    return min(max(red, 0), 255), min(max(green, 0), 255), min(max(blue, 0), 255)
