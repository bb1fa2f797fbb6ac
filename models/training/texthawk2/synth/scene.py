"""Pictures made of inked things (texts, shapes) at known places.

A thing is turned by itself and cropped to its ink before it is placed, so its box is exact. Sizes of text are chosen
by what the model will see: the picture is stretched to a grid of tiles, so text of 14 px in a small picture may be 30.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from models.families.texthawk2.coordinates import Box
from models.families.texthawk2.tiling import TilingLimits, best_grid
from models.training.texthawk2.synth.backgrounds import Colour
from models.training.texthawk2.synth.fonts import Face, Family, Glyph, Split, draw_text, font

# A letter of 32 pixels an em is a little wider than a patch of 14. Below, a third of the words is lost to patches that
# show parts of two letters (docs/experiments.md, probes of the shipped weights).
SMALLEST_TEXT, LARGEST_TEXT = 32.0, 72.0
SMALLEST_CHINESE = 32.0
LIMITS = TilingLimits(max_area=12, max_side=6)
_GAP = 3
_TRIES = 40
_SUPERSAMPLING = 4


@dataclass(frozen=True)
class Frame:
    """Width and height of a picture in pixels."""

    width: int
    height: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.width, self.height

    @property
    def zoom(self) -> float:
        """By how much tiling enlarges the picture, on its less enlarged axis."""
        rows, cols = best_grid(self.height, self.width, LIMITS)
        return min(cols * LIMITS.tile_size / self.width, rows * LIMITS.tile_size / self.height)


def one_tile(rng: np.random.Generator) -> Frame:
    """A picture that becomes one tile: 224 x 224 in two of three cases, else somewhat smaller, larger, oblong."""
    if rng.random() < 0.67:
        return Frame(LIMITS.tile_size, LIMITS.tile_size)
    height = int(rng.integers(130, 280))
    return Frame(min(round(height * float(rng.uniform(0.8, 1.3))), 290), height)


def many_tiles(rng: np.random.Generator, wide: bool = False) -> Frame:
    """A picture of 2 to 6 tiles, its sides up to 8% off the tiles' in half of the cases; ``wide``: 2 or 3 in a row."""
    grids = ((2, 1), (3, 1)) if wide else ((2, 1), (1, 2), (2, 2), (3, 1), (2, 3), (3, 2))
    cols, rows = grids[int(rng.integers(len(grids)))]
    width, height = cols * LIMITS.tile_size, rows * LIMITS.tile_size
    if rng.random() < 0.5:
        width, height = (round(side * float(rng.uniform(0.93, 1.08))) for side in (width, height))
    return Frame(width, height)


def strip(rng: np.random.Generator) -> Frame:
    """A flat picture, 48 to 100 px high and 2 to 4 times as wide, one line of text fills it; 2 to 4 tiles in a row.

    Sizes whose best grid has two rows are left out: text would be higher than a tile.
    """
    while True:
        height = int(rng.integers(48, 101))
        frame = Frame(round(height * float(rng.uniform(2.0, 4.0))), height)
        if best_grid(frame.height, frame.width, LIMITS).rows == 1:
            return frame


def any_frame(rng: np.random.Generator) -> Frame:
    """Mostly one tile; 30% are larger."""
    return one_tile(rng) if rng.random() < 0.7 else many_tiles(rng)


def text_size(rng: np.random.Generator, frame: Frame, smallest: float = SMALLEST_TEXT) -> int:
    """Pixels per em in the picture so that the model sees ``smallest`` to 72, small ones as often as large ones."""
    seen = smallest * math.exp(math.log(LARGEST_TEXT / smallest) * float(rng.random()))
    return max(round(seen / frame.zoom), 9)


def random_face(rng: np.random.Generator, families: Sequence[Family]) -> Face:
    """Any face of any family, each family as often as the others."""
    family = families[int(rng.integers(len(families)))]
    return family[int(rng.integers(len(family)))]


@dataclass(frozen=True)
class Thing:
    """Ink coverage (L), cropped to what is not zero, and what it shows."""

    ink: Image.Image
    name: str


@dataclass(frozen=True)
class Placed:
    """A thing with its upper left corner at (x, y)."""

    thing: Thing
    x: int
    y: int

    @property
    def edges(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom in pixels, the last two exclusive."""
        return self.x, self.y, self.x + self.thing.ink.width, self.y + self.thing.ink.height

    def box(self, frame: Frame) -> Box:
        """The same as shares of the picture."""
        left, top, right, bottom = self.edges
        return Box(left / frame.width, top / frame.height, right / frame.width, bottom / frame.height)


def text_thing(face: Face, size: int, text: str, degrees: float = 0.0) -> Thing:
    """``text`` on one line, turned."""
    return _cropped(draw_text(face, size, text).ink, text, degrees)


def fitting_size(face: Face, size: int, text: str, room: float) -> int:
    """The largest size up to ``size`` at which ``text`` is at most ``room`` pixels wide (or 1)."""
    width = font(face, size).getlength(text)
    return size if width <= room else max(int(size * room / width), 1)


def block_thing(lines: Sequence[tuple[Face, int, str]], spacing: float, align: float, degrees: float) -> Thing:
    """Lines of (face, size, text) under each other, ``spacing`` ems apart; ``align`` 0 left, 0.5 centre, 1 right."""
    drawn: list[tuple[Glyph, int]] = []
    baseline = 0
    for face, size, text in lines:
        baseline += round(size * spacing)
        drawn.append((draw_text(face, size, text), baseline))
    width = max(glyph.ink.width for glyph, _ in drawn)
    top = min(glyph.top + y for glyph, y in drawn)
    bottom = max(glyph.bottom + y for glyph, y in drawn)
    ink = Image.new("L", (width, bottom - top))
    for glyph, y in drawn:
        ink.paste(255, (round((width - glyph.ink.width) * align), y + glyph.top - top), glyph.ink)
    return _cropped(ink, "\n".join(text for _, _, text in lines), degrees)


def _cropped(ink: Image.Image, name: str, degrees: float) -> Thing:
    if degrees:
        ink = ink.rotate(degrees, Image.Resampling.BILINEAR, expand=True)
    box = ink.getbbox()
    if box is None:
        raise ValueError(f"{name!r} leaves no ink")
    return Thing(ink.crop(box), name)


# -- shapes ----------------------------------------------------------------------------------------------------------


def _regular(corners: int, first_degrees: float, inner: float | None = None) -> list[tuple[float, float]]:
    """Corners on the unit circle, with others between them at radius ``inner`` for a star."""
    points = []
    steps = corners if inner is None else 2 * corners
    for step in range(steps):
        angle = math.radians(first_degrees + 360 * step / steps)
        radius = inner if inner is not None and step % 2 else 1.0
        points.append((radius * math.cos(angle), radius * math.sin(angle)))
    return points


_POLYGONS: dict[str, list[tuple[float, float]]] = {
    "square": _regular(4, 45.0),
    "triangle": _regular(3, -90.0),
    "star": _regular(5, -90.0, 0.42),
}
SHAPES = ("square", "circle", "triangle", "star")
COLOURS: dict[str, Colour] = {
    "red": (215, 35, 40),
    "green": (35, 150, 60),
    "blue": (40, 80, 215),
    "yellow": (245, 215, 40),
    "orange": (245, 135, 25),
    "purple": (140, 55, 170),
}
_COLOUR_JITTER = 16


def shape_colour(rng: np.random.Generator, name: str) -> Colour:
    """A colour that goes by this name."""
    jitter = rng.integers(-_COLOUR_JITTER, _COLOUR_JITTER + 1, size=3)
    red, green, blue = (min(max(int(value), 0), 255) for value in np.asarray(COLOURS[name]) + jitter)
    return red, green, blue


def shape_thing(shape: str, side: float, name: str, degrees: float = 0.0) -> Thing:
    """A filled shape about ``side`` pixels wide."""
    radius = side / 2 * (math.sqrt(2) if shape == "square" else 1.0)
    half = math.ceil(radius) + 2
    large = Image.new("L", (2 * half * _SUPERSAMPLING,) * 2)
    draw = ImageDraw.Draw(large)
    centre, reach = half * _SUPERSAMPLING, radius * _SUPERSAMPLING
    if shape == "circle":
        draw.ellipse((centre - reach, centre - reach, centre + reach, centre + reach), fill=255)
    else:
        cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        corners = [
            (centre + reach * (x * cosine - y * sine), centre + reach * (x * sine + y * cosine))
            for x, y in _POLYGONS[shape]
        ]
        draw.polygon(corners, fill=255)
    return _cropped(large.reduce(_SUPERSAMPLING), name, 0.0)


# -- places ----------------------------------------------------------------------------------------------------------


def scatter(rng: np.random.Generator, split: Split, frame: Frame, things: Sequence[Thing]) -> list[Placed]:
    """Things at random places without overlap, in their order; one that finds no room is left out.

    Train and val: anywhere. Test: their left and upper edges on a hidden grid, like things that somebody laid out.
    """
    spot = _grid_spots(rng, frame) if split == "test" else _any_spot
    placed: list[Placed] = []
    for thing in things:
        free_x, free_y = frame.width - thing.ink.width - 2, frame.height - thing.ink.height - 2
        if free_x < 2 or free_y < 2:
            continue
        for _ in range(_TRIES):
            x, y = spot(rng, free_x, free_y)
            candidate = Placed(thing, x, y)
            if not any(_touch(candidate, other) for other in placed):
                placed.append(candidate)
                break
    return placed


def _any_spot(rng: np.random.Generator, free_x: int, free_y: int) -> tuple[int, int]:
    return int(rng.integers(2, free_x + 1)), int(rng.integers(2, free_y + 1))


def _grid_spots(rng: np.random.Generator, frame: Frame) -> Callable[[np.random.Generator, int, int], tuple[int, int]]:
    pitch_x, pitch_y = max(frame.width // 7, 3), max(frame.height // 9, 3)
    start_x, start_y = 2 + int(rng.integers(pitch_x)), 2 + int(rng.integers(pitch_y))

    def spot(rng: np.random.Generator, free_x: int, free_y: int) -> tuple[int, int]:
        x = start_x + pitch_x * int(rng.integers(max((free_x - start_x) // pitch_x + 1, 1)))
        y = start_y + pitch_y * int(rng.integers(max((free_y - start_y) // pitch_y + 1, 1)))
        return min(x, free_x), min(y, free_y)

    return spot


def rows_of(rng: np.random.Generator, split: Split, frame: Frame, rows: Sequence[Sequence[Thing]]) -> list[Placed]:
    """Things in cells, row by row, so that the order of reading is beyond doubt; what its cell cannot hold is left out.

    Train and val: anywhere in the cell. Test: in the middle of the cell.
    """
    placed = []
    height = frame.height / len(rows)
    for number, row in enumerate(rows):
        width = frame.width / len(row)
        for column, thing in enumerate(row):
            free_x, free_y = int(width) - thing.ink.width - 4, int(height) - thing.ink.height - 4
            if free_x < 0 or free_y < 0:
                continue
            x, y = (free_x // 2, free_y // 2)
            if split != "test":
                # Half of the free height, so that neighbours stay in one row for the eye too.
                x, y = int(rng.integers(free_x + 1)), free_y // 4 + int(rng.integers(free_y // 2 + 1))
            placed.append(Placed(thing, int(column * width) + 2 + x, int(number * height) + 2 + y))
    return placed


def _touch(first: Placed, second: Placed) -> bool:
    left, top, right, bottom = first.edges
    other_left, other_top, other_right, other_bottom = second.edges
    return (
        left < other_right + _GAP
        and other_left < right + _GAP
        and top < other_bottom + _GAP
        and other_top < bottom + _GAP
    )


def inked(canvas: Image.Image, placed: Sequence[Placed], colours: Sequence[Colour]) -> Image.Image:
    """Draw each thing in its colour onto ``canvas``, which is changed and returned."""
    for one, colour in zip(placed, colours, strict=True):
        canvas.paste(colour, (one.x, one.y), one.thing.ink)
    return canvas
