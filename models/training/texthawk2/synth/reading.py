"""Tasks of reading: a word, a line, Chinese characters, two pictures, a page."""

from __future__ import annotations

import numpy as np

from models.training.texthawk2.synth.backgrounds import background, ink_colour, paper_colour
from models.training.texthawk2.synth.camera import photographed
from models.training.texthawk2.synth.example import Example, pick
from models.training.texthawk2.synth.fonts import Face, FontSet, Split, default_fonts
from models.training.texthawk2.synth.scene import (
    SMALLEST_CHINESE,
    SMALLEST_TEXT,
    Frame,
    Thing,
    any_frame,
    block_thing,
    fitting_size,
    inked,
    many_tiles,
    one_tile,
    random_face,
    scatter,
    strip,
    text_size,
    text_thing,
)
from models.training.texthawk2.synth.words import chinese_word, latin_word

_MAX_DEGREES = 6.0
_READ = ("Read the text.", "What is written here?", "What does the image say?")
_READ_WORD = (*_READ, "Read the word.")
_READ_LINE = (*_READ, "Read the line.")
_READ_PAGE = ("Read the whole page.", "Transcribe the page.", "Read the page from top to bottom.")
_READ_NUMBERED = ("Read the {} image.", "What is written in the {} picture?", "What does the {} image say?")
_READ_BOTH = ("Read both images.", "What do the two images say?", "Read the images.")
_PAGE_CHARACTERS = 250
_PAGE_SMALLEST = 22.0
_STRIP_SHARE = 0.08

Line = tuple[Face, int, str]


def word(rng: np.random.Generator, split: Split, fonts: FontSet | None = None) -> Example:
    """One Latin word."""
    frame = _frame(rng)
    fonts = fonts or default_fonts()
    while True:
        face = random_face(rng, fonts.families("latin", split))
        line = _fitted(face, _size(rng, frame), latin_word(rng, split), frame)
        if line:
            return _reading(rng, split, frame, "word", [line], _READ_WORD)


def line(rng: np.random.Generator, split: Split, fonts: FontSet | None = None) -> Example:
    """Three to five Latin words on one line; in training also two."""
    kind = rng.random()
    frame = strip(rng) if kind < 0.15 else many_tiles(rng, wide=True) if kind < 0.7 else one_tile(rng)
    fewest = 2 if split == "train" else 3
    fonts = fonts or default_fonts()
    while True:
        face = random_face(rng, fonts.families("latin", split))
        text = " ".join(latin_word(rng, split, 9) for _ in range(int(rng.integers(fewest, 6))))
        fitted = _fitted(face, _size(rng, frame), text, frame)
        if fitted:
            return _reading(rng, split, frame, "line", [fitted], _READ_LINE)


def chinese(rng: np.random.Generator, split: Split, fonts: FontSet | None = None) -> Example:
    """Two to four Chinese characters."""
    frame = _frame(rng)
    face = random_face(rng, (fonts or default_fonts()).families("chinese", split))
    while True:
        fitted = _fitted(face, _size(rng, frame, SMALLEST_CHINESE), chinese_word(rng, split), frame, SMALLEST_CHINESE)
        if fitted:
            return _reading(rng, split, frame, "chinese", [fitted], _READ)


def two_pictures(rng: np.random.Generator, split: Split, fonts: FontSet | None = None) -> Example:
    """Two pictures in one request, a word each (one in three Chinese): the text of one of them, or of both."""
    fonts = fonts or default_fonts()
    tasks = [chinese if fonts.chinese and rng.random() < 0.33 else word for _ in range(2)]
    first, second = (task(rng, split, fonts) for task in tasks)
    texts = [example.turns[0][1] for example in (first, second)]
    turns = [
        (pick(rng, _READ_NUMBERED).format("first"), texts[0]),
        (pick(rng, _READ_NUMBERED).format("second"), texts[1]),
        (pick(rng, _READ_BOTH), "\n".join(texts)),
    ]
    chosen = tuple(turns[i] for i in rng.permutation(3)[:2])
    return Example(first.image, "two_pictures", chosen, others=(second.image,))


def page(rng: np.random.Generator, split: Split, fonts: FontSet | None = None) -> Example:
    """A small page of 4 to 10 lines in one font, up to about 250 characters, some with a title or a Chinese line."""
    fonts = fonts or default_fonts()
    frame = one_tile(rng) if rng.random() < 0.65 else many_tiles(rng)
    face = random_face(rng, fonts.families("latin", split))
    count = int(rng.integers(4, 11))
    chinese_face = random_face(rng, fonts.families("chinese", split)) if fonts.chinese and rng.random() < 0.3 else None
    smallest = _PAGE_SMALLEST / frame.zoom
    largest = min(frame.height / (count * 1.3 + 0.6), 34 / frame.zoom)
    size = round(max(float(rng.uniform(smallest, max(largest, smallest))), smallest))
    room = frame.width * float(rng.uniform(0.75, 0.93))
    lines: list[Line] = []
    characters = 0
    while len(lines) < count and (len(lines) + 1.2) * size * 1.25 < frame.height and characters < _PAGE_CHARACTERS:
        title = not lines and rng.random() < 0.3
        made = _page_line(rng, split, face, chinese_face, round(size * 1.25) if title else size, room)
        lines.append(made)
        characters += len(made[2]) + 1
    spacing = float(rng.uniform(1.15, max(1.16, min(1.7, frame.height / (len(lines) * size) - 0.15))))
    return _reading(rng, split, frame, "page", lines, _READ_PAGE, spacing)


def _page_line(
    rng: np.random.Generator, split: Split, face: Face, chinese_face: Face | None, size: int, room: float
) -> Line:
    """Words up to the right edge, or to somewhere before it as at the end of a paragraph."""
    room *= 1.0 if rng.random() < 0.7 else float(rng.uniform(0.4, 1.0))
    if chinese_face and rng.random() < 0.3:
        size = max(size, 15)
        count = max(2, min(int(room / size), 10))
        text = "".join(chinese_word(rng, split, 2) for _ in range(count // 2))
        return chinese_face, size, text
    words = [latin_word(rng, split, 9)]
    while len(words) < 7:
        words.append(latin_word(rng, split, 9))
        if fitting_size(face, size, " ".join(words), room) < size:
            words.pop()
            break
    return face, size, " ".join(words)


def _frame(rng: np.random.Generator) -> Frame:
    return strip(rng) if rng.random() < _STRIP_SHARE else any_frame(rng)


def _size(rng: np.random.Generator, frame: Frame, smallest: float = SMALLEST_TEXT) -> int:
    if frame.height <= 100:  # a strip: its line fills it
        return round(frame.height * float(rng.uniform(0.35, 0.65)))
    return text_size(rng, frame, smallest)


def _fitted(face: Face, size: int, text: str, frame: Frame, smallest: float = SMALLEST_TEXT) -> Line | None:
    """The line, made smaller if it is too wide; None when it would be too small to read."""
    size = fitting_size(face, size, text, frame.width * 0.94 - 6)
    return (face, size, text) if size * frame.zoom >= smallest - 0.5 else None


def _reading(
    rng: np.random.Generator,
    split: Split,
    frame: Frame,
    task: str,
    lines: list[Line],
    questions: tuple[str, ...],
    spacing: float | None = None,
) -> Example:
    """The lines as a block on a paper, turned as far as the frame allows."""
    spacing = spacing or float(rng.uniform(1.2, 1.6))
    degrees = float(rng.uniform(-_MAX_DEGREES, _MAX_DEGREES)) if rng.random() < 0.7 else 0.0
    aligns = (0.5, 1.0) if split == "test" else (0.0, 0.0, 0.25)
    align = aligns[int(rng.integers(len(aligns)))]
    thing = _block(lines, spacing, align, degrees, frame)
    placed = scatter(rng, split, frame, [thing])
    paper = paper_colour(rng, split)
    canvas = background(rng, split, *frame.size, paper)
    picture = inked(canvas, placed, [ink_colour(rng, paper)])
    smallest = min(size for _, size, _ in lines) * frame.zoom
    picture = photographed(rng, picture, min(1.0, smallest / 30))
    return Example(picture, task, ((pick(rng, questions), "\n".join(text for _, _, text in lines)),))


def _block(lines: list[Line], spacing: float, align: float, degrees: float, frame: Frame) -> Thing:
    """The block in a form that fits the frame: turned less, then its lines closer, then smaller."""
    for turn, space in ((degrees, spacing), (degrees / 3, spacing), (0.0, spacing), (0.0, min(spacing, 1.15))):
        thing = text_thing(*lines[0], turn) if len(lines) == 1 else block_thing(lines, space, align, turn)
        if thing.ink.width + 4 <= frame.width and thing.ink.height + 4 <= frame.height:
            return thing
    shrunk = [(face, size - 1, text) for face, size, text in lines]
    return _block(shrunk, spacing, align, 0.0, frame)
