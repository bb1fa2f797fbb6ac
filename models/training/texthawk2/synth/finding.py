"""Tasks about things and their places: where is it, what is there, how many, is it there, what is on the picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from models.families.texthawk2.coordinates import Box
from models.training.texthawk2.synth.backgrounds import Colour, background, ink_colour, luminance
from models.training.texthawk2.synth.camera import photographed
from models.training.texthawk2.synth.example import Example, box_text, pick
from models.training.texthawk2.synth.fonts import FontSet, Split, default_fonts
from models.training.texthawk2.synth.scene import (
    COLOURS,
    SHAPES,
    SMALLEST_CHINESE,
    SMALLEST_TEXT,
    Frame,
    Placed,
    Thing,
    any_frame,
    fitting_size,
    inked,
    random_face,
    rows_of,
    scatter,
    shape_colour,
    shape_thing,
    text_size,
    text_thing,
)
from models.training.texthawk2.synth.words import chinese_word, latin_word

_MIN_CONTRAST = 60.0
_MAX_DEGREES = 6.0
_LARGEST_WORD = 48.0
_MOST_QUESTIONS = 10
_WHERE = ("Where is {}?", "Find {}.", "Locate {}.")
_WHAT = ("What is in {}?", "What does {} show?")
_WHAT_TEXT = ("What is the text in {}?", "Read the text in {}.", "What is in {}?")
_DESCRIBE = ("Describe the image.", "What is in the image?", "Describe the picture.")
NONE = "There is none."
"""The answer to where something is that the picture does not show."""
_UNKNOWN = (
    "pentagon",
    "diamond",
    "heart",
    "arrow",
    "cross",
    "oval",
    "ring",
    "moon",
    "rectangle",
    "cube",
    "leaf",
    "key",
)
_UNKNOWN_HELD_OUT = ("hexagon", "octagon", "crescent", "cylinder", "flower", "house")
_COUNT = ("How many {}?", "How many {} are there?", "Count the {}.")


@dataclass(frozen=True)
class Figure:
    """A coloured shape or a written word, before it is placed."""

    thing: Thing
    colour: Colour | None
    """None: a text, whose colour is chosen to suit the paper."""

    @property
    def is_text(self) -> bool:
        """Whether it is a written word."""
        return self.colour is None

    @property
    def asked(self) -> str:
        """How a question names it."""
        if not self.is_text:
            return f"the {self.thing.name}"
        return f'the word "{self.thing.name}"' if self.thing.name.isascii() else f'"{self.thing.name}"'

    @property
    def described(self) -> str:
        """How a caption names it."""
        if self.is_text:
            return f"the word {self.thing.name}"
        return f"{'an' if self.thing.name[0] in 'aeiou' else 'a'} {self.thing.name}"


def ground_shape(rng: np.random.Generator, split: Split, fonts: FontSet | None = None) -> Example:
    """Where is a shape, among up to five different ones? One to three questions. Needs no fonts."""
    frame = any_frame(rng)
    return _where(rng, "ground_shape", split, frame, lambda: _different_shapes(rng, frame, int(rng.integers(1, 6))))


def ground_text(rng: np.random.Generator, split: Split, fonts: FontSet | None = None) -> Example:
    """Where is a word, among up to four (and some shapes)?"""
    fonts = fonts or default_fonts()
    frame = any_frame(rng)

    def figures() -> list[Figure]:
        words = _different_words(rng, split, fonts, frame, int(rng.integers(1, 5)))
        return words + (_different_shapes(rng, frame, int(rng.integers(1, 3))) if rng.random() < 0.3 else [])

    return _where(rng, "ground_text", split, frame, figures)


def chinese_ground(rng: np.random.Generator, split: Split, fonts: FontSet | None = None) -> Example:
    """Where are some Chinese characters, among up to three strings (and some shapes)?"""
    fonts = fonts or default_fonts()
    frame = any_frame(rng)

    def figures() -> list[Figure]:
        texts = [_chinese_figure(rng, split, fonts, frame) for _ in range(int(rng.integers(1, 4)))]
        return texts + (_different_shapes(rng, frame, 1) if rng.random() < 0.3 else [])

    return _where(rng, "chinese_ground", split, frame, figures)


def read_box(rng: np.random.Generator, split: Split, fonts: FontSet | None = None) -> Example:
    """What is in a box: a word, or a shape's colour and name? One or two questions."""
    fonts = fonts or default_fonts()
    frame = any_frame(rng)

    def figures() -> list[Figure]:
        words = _different_words(rng, split, fonts, frame, int(rng.integers(1, 4)))
        return _shuffled(rng, words + _different_shapes(rng, frame, int(rng.integers(0, 4))))

    placed, image = _placed(rng, split, frame, figures)
    turns, boxes = [], []
    for number in rng.permutation(len(placed))[: int(rng.integers(1, 3))]:
        figure, where = placed[number]
        box = _loosened(rng, where.box(frame))
        turns.append((pick(rng, _WHAT_TEXT if figure.is_text else _WHAT).format(box_text(box)), figure.thing.name))
        boxes.append(box)
    return Example(image, "read_box", tuple(turns), tuple(boxes))


def caption(rng: np.random.Generator, split: Split, fonts: FontSet | None = None) -> Example:
    """Everything on the picture in the order of reading; one in three asks for a place in a second turn."""
    frame, placed, image = laid_out(rng, split, fonts or default_fonts())
    turns = [(pick(rng, _DESCRIBE), listing([figure.described for figure, _ in placed]))]
    if rng.random() < 0.67:
        return Example(image, "caption", tuple(turns))
    figure, where = placed[int(rng.integers(len(placed)))]
    box = where.box(frame)
    turns.append((pick(rng, _WHERE).format(figure.asked), box_text(box)))
    return Example(image, "caption", tuple(turns), (box,))


def count(rng: np.random.Generator, split: Split, fonts: FontSet | None = None) -> Example:
    """How many of a shape, of a colour, of a coloured shape, or of all shapes? 0 to 6; one to three questions."""
    frame = any_frame(rng)
    number = int(rng.integers(1, 7))
    # Few kinds, so that counts above one are common.
    shapes = [SHAPES[i] for i in rng.permutation(len(SHAPES))[: int(rng.integers(1, 4))]]
    colours = [list(COLOURS)[i] for i in rng.permutation(len(COLOURS))[: int(rng.integers(1, 4))]]
    figures = [_shape(rng, frame, pick(rng, colours), pick(rng, shapes), 0.18) for _ in range(number)]
    placed, image = _scattered(rng, split, frame, figures)
    names = [figure.thing.name.split() for figure, _ in placed]
    asked_shape, asked_colour = pick(rng, SHAPES if rng.random() < 0.2 else shapes), pick(rng, colours)
    questions = [
        (f"{asked_shape}s", sum(shape == asked_shape for _, shape in names)),
        (f"{asked_colour} shapes", sum(colour == asked_colour for colour, _ in names)),
        (f"{asked_colour} {asked_shape}s", sum(name == [asked_colour, asked_shape] for name in names)),
        ("shapes", len(names)),
    ]
    chosen = rng.permutation(len(questions))[: int(rng.integers(1, 4))]
    turns = tuple((pick(rng, _COUNT).format(questions[i][0]), str(questions[i][1])) for i in chosen)
    return Example(image, "count", turns)


def absent(rng: np.random.Generator, split: Split, fonts: FontSet | None = None) -> Example:
    """Where is what the picture does not show: a shape of another colour, a word, a shape that is never drawn?"""
    fonts = fonts or default_fonts()
    frame = any_frame(rng)
    figures = _different_shapes(rng, frame, int(rng.integers(1, 5)))
    figures += _different_words(rng, split, fonts, frame, int(rng.integers(0, 3)))
    placed, image = _scattered(rng, split, frame, _shuffled(rng, figures))
    return Example(image, "absent", (_missing(rng, split, [figure for figure, _ in placed]),))


def interview(rng: np.random.Generator, split: Split, fonts: FontSet | None = None) -> Example:
    """Up to ten questions about one picture, each thing in one of them: a picture costs as much as a dozen questions.

    For training; what it asks is measured by the other tasks.
    """
    fonts = fonts or default_fonts()
    frame = any_frame(rng)
    figures = _different_words(rng, split, fonts, frame, int(rng.integers(0, 7)))
    figures += _different_shapes(rng, frame, int(rng.integers(1, 6)))
    if fonts.chinese and rng.random() < 0.4:
        figures += [_chinese_figure(rng, split, fonts, frame) for _ in range(int(rng.integers(1, 3)))]
    placed, image = _scattered(rng, split, frame, _shuffled(rng, figures))
    asked = [_one_question(rng, frame, figure, where) for figure, where in placed]
    shown = [figure for figure, _ in placed]
    asked.append((_missing(rng, split, shown), None))
    shapes = [figure.thing.name.split() for figure in shown if not figure.is_text]
    if shapes:
        colour, shape = (pick(rng, names) for names in zip(*shapes, strict=True))
        number = sum(name[1] == shape for name in shapes)
        asked.append(((pick(rng, _COUNT).format(f"{shape}s"), str(number)), None))
        number = sum(name[0] == colour for name in shapes)
        asked.append(((pick(rng, _COUNT).format(f"{colour} shapes"), str(number)), None))
    chosen = [asked[i] for i in rng.permutation(len(asked))[:_MOST_QUESTIONS]]
    return Example(
        image, "interview", tuple(turn for turn, _ in chosen), tuple(box for _, box in chosen if box is not None)
    )


# -- parts -----------------------------------------------------------------------------------------------------------


def laid_out(
    rng: np.random.Generator,
    split: Split,
    fonts: FontSet,
    draw_frame: Callable[[np.random.Generator], Frame] = any_frame,
) -> tuple[Frame, list[tuple[Figure, Placed]], Image.Image]:
    """One to four shapes and up to two words in rows: the frame, what is on it in the order of reading, the picture."""
    while True:
        frame = draw_frame(rng)
        figures = _different_shapes(rng, frame, int(rng.integers(1, 5)))
        figures += _different_words(rng, split, fonts, frame, int(rng.integers(0, 3)))
        figures = _shuffled(rng, figures)
        rows: list[list[Figure]] = []
        while figures:
            take = int(rng.integers(1, 3))
            rows.append(figures[:take])
            figures = figures[take:]
        by_thing = {id(figure.thing): figure for row in rows for figure in row}
        spots = rows_of(rng, split, frame, [[figure.thing for figure in row] for row in rows])
        placed = [(by_thing[id(spot.thing)], spot) for spot in spots]
        if placed:
            return frame, placed, _painted(rng, split, frame, placed)


def _where(
    rng: np.random.Generator, task: str, split: Split, frame: Frame, figures: Callable[[], Sequence[Figure]]
) -> Example:
    """Where are one to three of the texts, or of the shapes where there are no texts?"""
    placed, image = _placed(rng, split, frame, figures)
    asked = [one for one in placed if one[0].is_text] or placed
    turns, boxes = [], []
    for number in rng.permutation(len(asked))[: int(rng.integers(1, 4))]:
        figure, where = asked[number]
        turns.append((pick(rng, _WHERE).format(figure.asked), box_text(where.box(frame))))
        boxes.append(where.box(frame))
    return Example(image, task, tuple(turns), tuple(boxes))


def _placed(
    rng: np.random.Generator, split: Split, frame: Frame, figures: Callable[[], Sequence[Figure]]
) -> tuple[list[tuple[Figure, Placed]], Image.Image]:
    """Figures that found room, drawn anew until one did, and a text where there are texts."""
    while True:
        drawn = figures()
        placed, image = _scattered(rng, split, frame, drawn)
        if any(figure.is_text or not drawn[0].is_text for figure, _ in placed):
            return placed, image


def _one_question(
    rng: np.random.Generator, frame: Frame, figure: Figure, where: Placed
) -> tuple[tuple[str, str], Box | None]:
    """Where the thing is, or what is in its box; with the box."""
    box = where.box(frame)
    if rng.random() < 0.6:
        return (pick(rng, _WHERE).format(figure.asked), box_text(box)), box
    box = _loosened(rng, box)
    question = pick(rng, _WHAT_TEXT if figure.is_text else _WHAT).format(box_text(box))
    return (question, figure.thing.name), box


def _missing(rng: np.random.Generator, split: Split, shown: Sequence[Figure]) -> tuple[str, str]:
    """A question for what is not among ``shown``, and its answer."""
    names = {figure.thing.name.lower() for figure in shown}
    while True:
        kind = rng.random()
        if kind < 0.25:
            name = latin_word(rng, split, 10)
            asked = f'the word "{name}"'
        elif kind < 0.5:
            name = f"{pick(rng, list(COLOURS))} {pick(rng, _UNKNOWN_HELD_OUT if split == 'test' else _UNKNOWN)}"
            asked = f"the {name}"
        else:
            name = f"{pick(rng, list(COLOURS))} {pick(rng, SHAPES)}"
            asked = f"the {name}"
        if name.lower() not in names:
            return pick(rng, _WHERE).format(asked), NONE


def _chinese_figure(rng: np.random.Generator, split: Split, fonts: FontSet, frame: Frame) -> Figure:
    face = random_face(rng, fonts.families("chinese", split))
    size = min(text_size(rng, frame, SMALLEST_CHINESE), round(_LARGEST_WORD / frame.zoom))
    return Figure(text_thing(face, size, chinese_word(rng, split), _turn(rng)), None)


def _different_shapes(rng: np.random.Generator, frame: Frame, number: int) -> list[Figure]:
    kinds = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    return [_shape(rng, frame, *kinds[i]) for i in rng.permutation(len(kinds))[:number]]


def _shape(rng: np.random.Generator, frame: Frame, colour: str, shape: str, largest: float = 0.32) -> Figure:
    """Between 22 pixels as the model sees them and ``largest`` of the shorter side."""
    smallest = 22 / frame.zoom
    side = float(rng.uniform(smallest, max(largest * min(frame.size), smallest + 4)))
    tint = shape_colour(rng, colour)
    return Figure(shape_thing(shape, side, f"{colour} {shape}", _turn(rng)), tint)


def _different_words(rng: np.random.Generator, split: Split, fonts: FontSet, frame: Frame, number: int) -> list[Figure]:
    figures: dict[str, Figure] = {}
    while len(figures) < number:
        text = latin_word(rng, split, 10)
        face = random_face(rng, fonts.families("latin", split))
        size = min(text_size(rng, frame), round(_LARGEST_WORD / frame.zoom))
        size = fitting_size(face, size, text, frame.width * 0.6)
        if size * frame.zoom < SMALLEST_TEXT - 0.5:
            continue
        figures.setdefault(text.lower(), Figure(text_thing(face, size, text, _turn(rng)), None))
    return list(figures.values())


def _turn(rng: np.random.Generator) -> float:
    return float(rng.uniform(-_MAX_DEGREES, _MAX_DEGREES)) if rng.random() < 0.5 else 0.0


def _shuffled(rng: np.random.Generator, figures: Sequence[Figure]) -> list[Figure]:
    return [figures[i] for i in rng.permutation(len(figures))]


def _scattered(
    rng: np.random.Generator, split: Split, frame: Frame, figures: Sequence[Figure]
) -> tuple[list[tuple[Figure, Placed]], Image.Image]:
    by_thing = {id(figure.thing): figure for figure in figures}
    spots = scatter(rng, split, frame, [figure.thing for figure in figures])
    placed = [(by_thing[id(spot.thing)], spot) for spot in spots]
    return placed, _painted(rng, split, frame, placed)


def _painted(
    rng: np.random.Generator, split: Split, frame: Frame, placed: Sequence[tuple[Figure, Placed]]
) -> Image.Image:
    paper = _paper(rng, [figure.colour for figure, _ in placed if figure.colour])
    canvas = background(rng, split, *frame.size, paper)
    inks = [figure.colour or ink_colour(rng, paper, 100.0) for figure, _ in placed]
    return photographed(rng, inked(canvas, [where for _, where in placed], inks), 0.6)


def _paper(rng: np.random.Generator, colours: Sequence[Colour]) -> Colour:
    """A nearly grey paper that no shape's colour melts into."""
    for _ in range(12):
        grey = int(rng.integers(200, 250)) if rng.random() < 0.65 else int(rng.integers(8, 90))
        red, green, blue = (min(max(grey + int(value), 0), 255) for value in rng.integers(-14, 15, size=3))
        paper = (red, green, blue)
        if all(
            abs(luminance(paper) - luminance(colour)) >= _MIN_CONTRAST or _apart(paper, colour) for colour in colours
        ):
            return paper
    return 236, 236, 236


def _apart(first: Colour, second: Colour) -> bool:
    return max(abs(a - b) for a, b in zip(first, second, strict=True)) >= 2 * _MIN_CONTRAST


def _loosened(rng: np.random.Generator, box: Box) -> Box:
    """What a user draws: up to 2% of the picture larger on each side."""
    left, top, right, bottom = (float(value) for value in rng.uniform(0, 0.02, size=4))
    return Box(max(box.x1 - left, 0.0), max(box.y1 - top, 0.0), min(box.x2 + right, 1.0), min(box.y2 + bottom, 1.0))


def listing(names: Sequence[str]) -> str:
    """Names as a sentence has them."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
