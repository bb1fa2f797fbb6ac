"""Tiles full of text and shapes with what is under every patch: dense supervision for the vision tower."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.training.texthawk2.synth.backgrounds import background, ink_colour, paper_colour
from models.training.texthawk2.synth.camera import other_weight, photographed, turned
from models.training.texthawk2.synth.charset import CHAR_CLASSES, CHINESE, CLASS_OF, LATIN
from models.training.texthawk2.synth.fonts import Face, FontSet, Split, default_fonts, glyph
from models.training.texthawk2.synth.scene import COLOURS, SHAPES, Placed, shape_colour, shape_thing
from models.training.texthawk2.synth.words import latin_word

TILE = 224
PATCH = 14
GRID = TILE // PATCH
COLUMNS = 3
"""Labels of a patch, side by side: an i is a third of a patch wide, and the middle of a patch seldom meets one."""
# Few sizes, so that glyphs are drawn once and kept; the scale of the whole tile makes what lies between them.
_SIZES = (28, 31, 34, 38, 42, 47, 53, 60)
_SHAPE_SIDES = (20, 76)
_TILES_WITH_SHAPES, _OF_THEM_WITHOUT_TEXT = 0.45, 0.4
_MAX_DEGREES = 8.0
_STRETCH, _SLANT = 0.2, 0.2
_CHINESE_LINES = 0.4

DENSE_CLASSES: tuple[str, ...] = (*CHAR_CLASSES, *(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES))
"""What a patch can show: nothing, a character, a shape of a colour."""
_SHAPE_CLASS = {name: number for number, name in enumerate(DENSE_CLASSES) if number >= len(CHAR_CLASSES)}

Labels = NDArray[np.int16]


def dense_tile(
    rng: np.random.Generator, split: Split, fonts: FontSet | None = None
) -> tuple[NDArray[np.uint8], Labels]:
    """Pixels uint8 (224, 224, 3), and the class of what is at ``COLUMNS`` places across each 14x14 patch, at half its
    height, int16 (16, 16 * COLUMNS).

    A character is at a point that lies within its advance across and its ink (at least a third of the font size) down.
    ``fonts`` is the project's set when None; one without Chinese fonts gives Latin text alone.
    """
    fonts = fonts or default_fonts()
    degrees = float(rng.uniform(-_MAX_DEGREES, _MAX_DEGREES)) if rng.random() < 0.7 else 0.0
    scale = float(rng.uniform(0.92, 1.08))
    stretch, slant = 1.0, 0.0
    if split == "train" and rng.random() < 0.7:  # shapes of letters between those of its fonts
        stretch, slant = math.exp(float(rng.uniform(-_STRETCH, _STRETCH))), float(rng.uniform(-_SLANT, _SLANT))
    turn, size = turned(degrees, scale, (TILE, TILE), stretch, slant)
    paper = paper_colour(rng, split)
    canvas = background(rng, split, *size, paper)
    under = np.zeros((size[1], size[0]), np.int16)
    has_shapes = rng.random() < _TILES_WITH_SHAPES
    if not (has_shapes and rng.random() < _OF_THEM_WITHOUT_TEXT):
        _fill(rng, split, fonts, canvas, under, paper)
    if has_shapes:
        _strew(rng, canvas, under)
    picture = turn.apply(canvas, (TILE, TILE))
    if split == "train" and rng.random() < 0.3:
        picture = other_weight(rng, picture)
    picture = photographed(rng, picture)
    return np.asarray(picture), labels_under(under, turn.coefficients)


def labels_under(under: Labels, coefficients: tuple[float, ...]) -> Labels:
    """What of ``under`` (canvas height, canvas width) lies at the places of each patch, int16 (16, 16 * COLUMNS)."""
    a, b, c, d, e, f = coefficients
    x = ((np.arange(GRID * COLUMNS) + 0.5) * PATCH / COLUMNS)[None]
    y = (np.arange(GRID) * PATCH + PATCH / 2)[:, None]
    columns = np.clip((a * x + b * y + c).astype(np.intp), 0, under.shape[1] - 1)
    rows = np.clip((d * x + e * y + f).astype(np.intp), 0, under.shape[0] - 1)
    return under[rows, columns]


def _fill(
    rng: np.random.Generator,
    split: Split,
    fonts: FontSet,
    canvas: Image.Image,
    under: Labels,
    paper: tuple[int, int, int],
) -> None:
    """Lines of text from top to bottom, each with a font, a size and a colour of its own."""
    chinese_share = _CHINESE_LINES if fonts.chinese else 0.0
    ink = ink_colour(rng, paper)
    same_ink = rng.random() < 0.5
    y = int(rng.integers(-10, 20))
    while y < canvas.height:
        size = _SIZES[int(rng.integers(len(_SIZES)))]
        is_chinese = bool(rng.random() < chinese_share)
        families = fonts.families("chinese" if is_chinese else "latin", split)
        family = families[int(rng.integers(len(families)))]
        face = family[int(rng.integers(len(family)))]
        text = _line(rng, split, is_chinese, max(2, canvas.width * (1 if is_chinese else 2) // size))
        x = int(rng.integers(-size, size * 2))
        spacing = float(rng.choice((0.0, 0.0, 0.06, 0.15))) * size
        write(canvas, under, text, face, size, (x, y + size), spacing, ink)
        y += round(size * float(rng.uniform(1.15, 1.7)))
        if not same_ink:
            ink = ink_colour(rng, paper)


def _strew(rng: np.random.Generator, canvas: Image.Image, under: Labels) -> None:
    """One to six shapes anywhere, also over text and each other."""
    for _ in range(int(rng.integers(1, 7))):
        colour, shape = (names[int(rng.integers(len(names)))] for names in (list(COLOURS), SHAPES))
        turn = float(rng.uniform(-_MAX_DEGREES, _MAX_DEGREES))
        thing = shape_thing(shape, float(rng.uniform(*_SHAPE_SIDES)), f"{colour} {shape}", turn)
        free_x, free_y = canvas.width - thing.ink.width, canvas.height - thing.ink.height
        spot = Placed(thing, int(rng.integers(free_x)), int(rng.integers(free_y)))
        left, top, right, bottom = spot.edges
        canvas.paste(shape_colour(rng, colour), (left, top), thing.ink)
        under[top:bottom, left:right][np.asarray(thing.ink) > 127] = _SHAPE_CLASS[thing.name]


def _line(rng: np.random.Generator, split: Split, is_chinese: bool, length: int) -> str:
    """About ``length`` characters: random ones, or words."""
    if is_chinese:
        line = "".join(CHINESE[i] for i in rng.integers(len(CHINESE), size=length))
        gaps = rng.random(length) < 0.05
        return "".join(" " if gap else char for char, gap in zip(line, gaps, strict=True))
    if rng.random() < 0.5:
        line = "".join(LATIN[i] for i in rng.integers(len(LATIN), size=length))
        gaps = rng.random(length) < 0.12
        return "".join(" " if gap else char for char, gap in zip(line, gaps, strict=True))
    words: list[str] = []
    while sum(map(len, words)) + len(words) < length:
        words.append(latin_word(rng, split))
    return " ".join(words)


def write(
    canvas: Image.Image,
    under: Labels,
    text: str,
    face: Face,
    size: int,
    pen: tuple[int, int],
    spacing: float,
    ink: tuple[int, int, int],
) -> None:
    """Draw ``text`` from ``pen`` (x, baseline) to the edge, and note what is where."""
    x, baseline = float(pen[0]), pen[1]
    for char in text:
        drawn = glyph(face, size, char)
        if char != " ":
            left, top = round(x) + drawn.left, baseline + drawn.top
            canvas.paste(ink, (left, top), drawn.ink)
            half = max(drawn.ink.height, size // 3) / 2
            middle = top + drawn.ink.height / 2
            rows = slice(max(int(middle - half), 0), max(int(middle + half), 0))
            columns = slice(max(round(x), 0), max(round(x + drawn.advance), 0))
            under[rows, columns] = CLASS_OF[char]
        x += drawn.advance + spacing
        if x >= canvas.width:
            return
