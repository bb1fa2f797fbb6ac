"""Says what a clip shows, frame by frame, without anything learnt: colours by distance, shapes by drawing them anew.

Independent of the model: it knows the renderer alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.training.exvideo.scenes import BACKGROUND, COLOURS, FAR, NEAR, SHAPES, SIZE, Places, draw
from models.training.vdit.clips import RGB, Clip

Floats = npt.NDArray[np.floating[Any]]

MISFIT = 0.3
"""Most that what is seen may differ from the drawn shape, of the area of one: smears and second objects are neither
shape."""
WALL = 2.0
"""Pixels from where centres turn round within which a change of direction is a bounce."""
TURN = 45.0
"""Degrees over four frames that are a change of direction."""
STILL = 0.4
"""Share of the speed asked for below which eight frames count as standing still."""
SPAN = 2
"""Frames over which a velocity is taken."""


@dataclass(frozen=True, slots=True)
class Seen:
    """In each frame: the colour, the shape (-1: none that fits), and the centre."""

    colours: npt.NDArray[np.int64]
    shapes: npt.NDArray[np.int64]
    places: Places

    def is_kept(self, colour: str, shape: str) -> npt.NDArray[np.bool_]:
        """Of each frame, whether it shows that."""
        kept: npt.NDArray[np.bool_] = (self.colours == COLOURS.index(colour)) & (self.shapes == SHAPES.index(shape))
        return kept


def look(clip: Clip) -> Seen:
    """What uint8 frames (T, 32, 32, 3) show."""
    ground = np.array(RGB[BACKGROUND], np.float64)
    inks = np.array([RGB[colour] for colour in COLOURS], np.float64) - ground
    ink_of_pixel = clip.astype(np.float64) - ground
    strength = np.linalg.norm(ink_of_pixel, axis=3)
    core = np.where(strength > 0.7 * strength.max((1, 2), keepdims=True), strength, 0.0)
    mean = (core[..., None] * ink_of_pixel).sum((1, 2)) / np.maximum(core.sum((1, 2)), 1e-9)[:, None]
    colours = np.linalg.norm(mean[:, None] - inks, axis=2).argmin(1)
    ink = inks[colours]
    cover = np.clip(np.einsum("thwc,tc->thw", ink_of_pixel, ink) / (ink**2).sum(1)[:, None, None], 0, 1.2)
    cover[cover < 0.15] = 0.0
    off = (
        np.linalg.norm(ink_of_pixel - cover[..., None] * ink[:, None, None], axis=3)
        / np.linalg.norm(ink, axis=1)[:, None, None]
    )
    places = _centres(cover)
    misfits = np.stack([_misfit(cover, off, shape, places) for shape in SHAPES], 1)
    best = misfits.argmin(1)
    return Seen(colours, np.where(misfits.min(1) <= MISFIT, best, -1), places)


def _centres(cover: Floats) -> Places:
    pixels = np.arange(SIZE) + 0.5
    total = np.maximum(cover.sum((1, 2)), 1e-9)
    return np.stack([(cover.sum(1) * pixels).sum(1) / total, (cover.sum(2) * pixels).sum(1) / total], 1)


def _misfit(cover: Floats, off: Floats, shape: str, places: Places) -> Floats:
    """Of each frame, the area in which it differs from the shape drawn at the centre, per area of one."""
    ground, ink = (float(RGB[colour][1]) for colour in (BACKGROUND, "white"))
    drawn = (draw("white", shape, places)[..., 1] - ground) / (ink - ground)
    difference: Floats = (np.abs(cover - drawn) + np.where(off > 0.3, off, 0.0)).sum((1, 2)) / drawn.sum((1, 2)).clip(
        1.0
    )
    return difference


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of a clip."""

    kept: float
    """Share of its frames in which colour and shape are the first frame's."""
    is_kept: bool
    """All of them."""
    turns_only_at_walls: bool
    keeps_moving: bool
    """No stretch of eight frames stands still."""
    speed: float
    """Pixels a frame, away from walls."""
    roughness: float
    """Root mean square of the second difference, pixels a frame and frame, away from walls."""

    @property
    def is_smooth(self) -> bool:
        """It goes on as it should."""
        return self.turns_only_at_walls and self.keeps_moving


def judge(clip: Clip, colour: str, shape: str, speed: float) -> Verdict:
    """Of a clip that should show that at ``speed`` pixels a frame."""
    seen = look(clip)
    kept = seen.is_kept(colour, shape)
    free = _away_from_walls(seen.places)
    return Verdict(
        kept=float(kept.mean()),
        is_kept=bool(kept.all()),
        turns_only_at_walls=not (_turns(seen.places)[free] > TURN).any(),
        keeps_moving=_keeps_moving(seen.places, speed),
        speed=_speed(seen.places, free),
        roughness=_roughness(seen.places, free),
    )


def _away_from_walls(places: Places) -> npt.NDArray[np.bool_]:
    """Of each frame that has ``SPAN`` neighbours on both sides: none of them is where a bounce may be."""
    inside = ((places > NEAR + WALL) & (places < FAR - WALL)).all(1)
    windows = np.lib.stride_tricks.sliding_window_view(inside, 2 * SPAN + 1)
    free: npt.NDArray[np.bool_] = np.asarray(windows.all(1))
    return free


def _turns(places: Places) -> Floats:
    """Degrees between the velocities before and after each such frame."""
    before, after = places[SPAN:-SPAN] - places[: -2 * SPAN], places[2 * SPAN :] - places[SPAN:-SPAN]
    cross = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    turns: Floats = np.abs(np.degrees(np.arctan2(cross, (before * after).sum(1))))
    return turns


def _keeps_moving(places: Places, speed: float) -> bool:
    """The path's length, measured over spans, of each eight frames."""
    steps = np.linalg.norm(places[SPAN:] - places[:-SPAN], axis=1) / SPAN
    windows = np.lib.stride_tricks.sliding_window_view(steps, min(8, len(steps)))
    return bool((windows.mean(1) >= STILL * speed).all())


def _speed(places: Places, free: npt.NDArray[np.bool_]) -> float:
    spans = np.linalg.norm(places[2 * SPAN :] - places[: -2 * SPAN], axis=1) / (2 * SPAN)
    return float(spans[free].mean()) if free.any() else float("nan")


def _roughness(places: Places, free: npt.NDArray[np.bool_]) -> float:
    second = (places[2:] - 2 * places[1:-1] + places[:-2])[SPAN - 1 : len(places) - SPAN - 1]
    return float(np.sqrt((second[free] ** 2).sum(1).mean())) if free.any() else float("nan")
