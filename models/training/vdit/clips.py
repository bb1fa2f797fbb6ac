"""Draws scenes: clips of 64x64 pixels with soft edges, wherever the objects start.

An object moves at a constant speed and wraps round at the edges: a clip of any length keeps moving the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from models.training.vdit.scenes import PIXELS_PER_FRAME, Mover, Scene

SIZE = 64
RADIUS = 12.0
SHORT_CLIP = 29
"""Frames in which an object crosses the middle of the picture; in longer clips it wraps round."""
Image = npt.NDArray[np.floating[Any]]
Clip = npt.NDArray[np.uint8]
"""uint8 RGB, (T, 64, 64, 3)."""

RGB: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        "red": (220, 40, 40),
        "green": (40, 190, 60),
        "blue": (50, 90, 235),
        "yellow": (240, 215, 50),
        "white": (240, 240, 240),
        "purple": (160, 60, 200),
        "black": (16, 16, 16),
        "gray": (96, 96, 96),
        "brown": (92, 60, 32),
    }
)
STEP: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
)


def _circle(x: Image, y: Image) -> Image:
    return np.hypot(x, y) - RADIUS


def _square(x: Image, y: Image) -> Image:
    distance: Image = np.maximum(np.abs(x), np.abs(y)) - 0.87 * RADIUS
    return distance


def _triangle(x: Image, y: Image) -> Image:
    """Equilateral, point up."""
    distance: Image = np.maximum(0.866 * np.abs(x) - 0.5 * y, y) - 0.58 * RADIUS
    return distance


def _cross(x: Image, y: Image) -> Image:
    """Two bars: features of it are as large as those of the others, which a small autoencoder keeps."""
    across, along = np.minimum(np.abs(x), np.abs(y)), np.maximum(np.abs(x), np.abs(y))
    distance: Image = np.maximum(along - RADIUS, across - 0.34 * RADIUS)
    return distance


DISTANCE: Mapping[str, Callable[[Image, Image], Image]] = MappingProxyType(
    {"circle": _circle, "square": _square, "triangle": _triangle, "cross": _cross}
)
"""Pixels outside the edge, about; negative inside. Arguments are pixels from the centre."""


def start_positions(scene: Scene, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Where the objects are at first: halfway through a short clip they are about the middle of their path.

    Two objects keep to bands of their own, so that they seldom meet; more (training alone shows them) are anywhere.
    """
    count = len(scene.movers)
    if count > 2:
        return [(float(x), float(y)) for x, y in rng.uniform(0, SIZE, (count, 2))]
    bands = [rng.uniform(16, 48)] if count == 1 else list(rng.permutation([18.0, 46.0]))
    places = []
    for mover, band in zip(scene.movers, bands, strict=True):
        dx, dy = STEP[mover.direction]
        path = PIXELS_PER_FRAME[mover.speed] * (SHORT_CLIP - 1)
        along = SIZE / 2 + rng.uniform(-5, 5)
        across = band + rng.uniform(-2, 2)
        x, y = (along, across) if dx else (across, along)
        places.append((float(x - dx * path / 2), float(y - dy * path / 2)))
    return places


def render(scene: Scene, num_frames: int, rng: np.random.Generator, *, every: int = 1) -> Clip:
    """Draw a scene from random starting points; of ``num_frames``, one in ``every``."""
    places = start_positions(scene, rng)
    numbers = np.arange(0, num_frames, every, dtype=np.float32)
    clip = np.empty((len(numbers), SIZE, SIZE, 3), np.float32)
    clip[:] = RGB[scene.background]
    for mover, place in zip(scene.movers, places, strict=True):
        _draw(clip, numbers, mover, place)
    return clip.round().astype(np.uint8)


def _draw(clip: Image, numbers: Image, mover: Mover, place: tuple[float, float]) -> None:
    dx, dy = STEP[mover.direction]
    speed = PIXELS_PER_FRAME[mover.speed]
    frames = numbers * speed
    x = _wrapped(np.arange(SIZE, dtype=np.float32)[None, :] - (place[0] + dx * frames)[:, None])[:, None, :]
    y = _wrapped(np.arange(SIZE, dtype=np.float32)[None, :] - (place[1] + dy * frames)[:, None])[:, :, None]
    distance = DISTANCE[mover.shape](*np.broadcast_arrays(x, y))
    cover = np.clip(0.5 - distance, 0.0, 1.0)[..., None]
    clip += cover * (np.array(RGB[mover.colour], np.float32) - clip)


def _wrapped(offset: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return ((offset + SIZE / 2) % SIZE - SIZE / 2).astype(np.float32)
