"""Clips to learn motion from: one coloured shape before a plain background, that flies straight and bounces.

The first frame says what moves and from where, not whither. How fast is said by the motion bucket. The base sees all
directions. In long clips the shape sets out for the farther side wall, so that the first frame settles all forty.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from models.training.vdit import clips
from models.training.vdit.clips import DISTANCE, RGB, Clip, Image

SIZE = 32
SCALE = clips.SIZE / SIZE
RADIUS = clips.RADIUS / SCALE
FRAMES = 8
"""Of the base model."""
LONG_FRAMES = 40
"""Of the extended one."""
COLOURS = ("red", "green", "blue", "yellow", "white", "purple")
SHAPES = ("circle", "triangle")
BACKGROUND = "black"
NEAR, MIDDLE, FAR = RADIUS, SIZE / 2, SIZE - RADIUS
"""Where centres turn round, so that the whole object stays in view."""
SLOWEST, FASTEST = 0.5, 1.5
"""Pixels a frame."""
LONG_FASTEST = 1.0
"""In long clips: they cross the picture twice."""
UNDECIDED = 1.0
"""Pixels from the middle within which no long clip begins: neither wall is clearly the farther one."""
BUCKETS_PER_PIXEL = 128
"""Motion bucket ids are from 64 to 192; SVD's usual 127 is about 1 pixel a frame."""
HELD_OUT = (("red", "triangle"), ("green", "circle"))
"""Combinations that the denoiser is never trained on."""

Places = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scene:
    """One object, where it starts, and its velocity in pixels a frame."""

    colour: str
    shape: str
    place: tuple[float, float]
    velocity: tuple[float, float]

    @property
    def speed(self) -> float:
        """Pixels a frame."""
        return math.hypot(*self.velocity)

    @property
    def motion_bucket_id(self) -> int:
        """What the model is told of the speed."""
        return round(self.speed * BUCKETS_PER_PIXEL)

    def places(self, num_frames: int) -> Places:
        """Centres, (T, 2)."""
        straight = np.array(self.place) + np.arange(num_frames)[:, None] * np.array(self.velocity)
        return bounced(straight)


def bounced(straight: Places) -> Places:
    """Where something is that would be at ``straight`` if there were no walls."""
    width = FAR - NEAR
    return NEAR + width - np.abs((straight - NEAR) % (2 * width) - width)


def sample_scene(rng: np.random.Generator, *, held_out: bool | None = False, is_long: bool = False) -> Scene:
    """A random one: of training, of the held-out combinations, or (None) of any. ``is_long``: as long clips move."""
    kinds = [one for one in product(COLOURS, SHAPES) if held_out is None or (one in HELD_OUT) == held_out]
    colour, shape = kinds[rng.integers(len(kinds))]
    x, y = (float(one) for one in rng.uniform(NEAR, FAR, 2))
    if is_long:
        x, speed = _decided(x), float(rng.uniform(SLOWEST, LONG_FASTEST))
        return Scene(colour, shape, (x, y), (speed if x < MIDDLE else -speed, 0.0))
    speed, angle = rng.uniform(SLOWEST, FASTEST), rng.uniform(0, 2 * math.pi)
    return Scene(colour, shape, (x, y), (float(speed * math.cos(angle)), float(speed * math.sin(angle))))


def _decided(x: float) -> float:
    """The same side, but not in the middle."""
    room = 1 - UNDECIDED / (MIDDLE - NEAR)
    return NEAR + (x - NEAR) * room if x < MIDDLE else FAR - (FAR - x) * room


def render(scene: Scene, num_frames: int) -> Clip:
    """uint8 (T, 32, 32, 3), edges soft by a pixel."""
    return draw(scene.colour, scene.shape, scene.places(num_frames))


def draw(colour: str, shape: str, places: Places) -> Clip:
    """One frame for each centre."""
    pixels = np.arange(SIZE, dtype=np.float32) + 0.5
    x = pixels[None, None, :] - places[:, 0, None, None].astype(np.float32)
    y = pixels[None, :, None] - places[:, 1, None, None].astype(np.float32)
    distance: Image = DISTANCE[shape](*np.broadcast_arrays(SCALE * x, SCALE * y))
    cover = np.clip(0.5 - distance / SCALE, 0.0, 1.0)[..., None]
    ground, ink = (np.array(RGB[name], np.float32) for name in (BACKGROUND, colour))
    frames: Clip = (ground + cover * (ink - ground)).round().astype(np.uint8)
    return frames
