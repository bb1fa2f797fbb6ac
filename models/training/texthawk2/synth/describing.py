"""Answers of three lengths about one picture, and how many of the facts in an answer are true.

A *caption* says in a few characters what there is, a *description* names the first things in a sentence, a *list* names
every thing with its place. The question settles which, the picture settles the words, so an answer has one right end.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from PIL import Image

from models.training.texthawk2.synth.example import Example, pick
from models.training.texthawk2.synth.finding import laid_out, listing
from models.training.texthawk2.synth.fonts import FontSet, Split, default_fonts
from models.training.texthawk2.synth.scene import COLOURS, SHAPES, one_tile

Kind: TypeAlias = Literal["caption", "description", "list"]
KINDS: tuple[Kind, ...] = ("caption", "description", "list")
QUESTIONS: Mapping[Kind, tuple[str, ...]] = {
    "caption": (
        "Caption the image.",
        "Give a short caption.",
        "What is this, in a word or two?",
        "In short, what is in the picture?",
        "Write a very short caption.",
        "Say briefly what you see.",
    ),
    "description": (
        "Describe the image.",
        "Describe the picture.",
        "What is in the image?",
        "What do you see?",
        "Tell me about this picture.",
        "Describe the picture in a sentence.",
    ),
    "list": (
        "List everything in the picture.",
        "List every thing and where it is.",
        "Describe the image in full detail.",
        "Describe everything that you see, one by one.",
        "Give a complete list of what the image shows.",
        "Name all things in the picture with their places.",
    ),
}
"""What is asked for each kind of answer."""

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
_ROWS, _COLUMNS = ("top", "", "bottom"), ("left", "", "right")
_CENTRE = "centre"
_NAMED = 3
"""Things that a description names; of more, it says how many there are."""
PLACES = tuple(f"{row} {column}".strip() or _CENTRE for row in _ROWS for column in _COLUMNS)


@dataclass(frozen=True, slots=True)
class Seen:
    """A thing on a picture: its name (colour and shape, or the text), how a sentence names it, and its place."""

    name: str
    described: str
    is_text: bool
    place: str


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture and the things on it in the order of reading, one at least."""

    image: Image.Image
    things: tuple[Seen, ...]

    def example(self, rng: np.random.Generator, kind: Kind) -> Example:
        """One question for an answer of this kind."""
        return Example(self.image, kind, ((pick(rng, QUESTIONS[kind]), answer_of(kind, self.things)),))


def scene(rng: np.random.Generator, split: Split, fonts: FontSet | None = None) -> Scene:
    """One to four shapes and up to two words, laid out as for a caption, on a picture of one tile."""
    frame, placed, image = laid_out(rng, split, fonts or default_fonts(), one_tile)
    things = []
    for figure, where in placed:
        box = where.box(frame)
        place = place_of((box.x1 + box.x2) / 2, (box.y1 + box.y2) / 2)
        things.append(Seen(figure.thing.name, figure.described, figure.is_text, place))
    return Scene(image, tuple(things))


def place_of(x: float, y: float) -> str:
    """In words, of a point given as shares of the picture's width and height: one of ``PLACES``."""
    row, column = (min(int(3 * share), 2) for share in (y, x))
    return PLACES[3 * row + column]


# -- what is said ----------------------------------------------------------------------------------------------------


def answer_of(kind: Kind, things: Sequence[Seen]) -> str:
    """The one right answer of this kind."""
    return _ANSWERS[kind](things)


def _caption(things: Sequence[Seen]) -> str:
    first = things[0]
    return first.name if len(things) == 1 and not first.is_text else _counted(things)


def _description(things: Sequence[Seen]) -> str:
    named = listing([thing.described for thing in things[:_NAMED]])
    if len(things) == 1:
        return f"There is only {named} here."
    if len(things) <= _NAMED:
        return f"I see {named}."
    return f"I see {_NUMBERS[len(things)]} things, among them {named}."


def _list(things: Sequence[Seen]) -> str:
    shapes, words = ([one for one in things if one.is_text is wanted] for wanted in (False, True))
    counted = " and ".join(_counted(group) for group in (shapes, words) if group)
    lines = [f"{number}. {thing.described}, {thing.place}" for number, thing in enumerate(things, 1)]
    return "\n".join([f"The picture has {counted}.", *lines, "Nothing else is in the picture."])


_ANSWERS: Mapping[Kind, Callable[[Sequence[Seen]], str]] = {
    "caption": _caption,
    "description": _description,
    "list": _list,
}


def _counted(things: Sequence[Seen]) -> str:
    kinds = {thing.is_text for thing in things}
    noun = "thing" if len(kinds) > 1 else "word" if True in kinds else "shape"
    return f"{_NUMBERS[len(things)]} {noun}{'' if len(things) == 1 else 's'}"


# -- what of it is true ----------------------------------------------------------------------------------------------

FACTS = ("shape", "word", "place", "number")
_SHAPE = re.compile(rf"\b((?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)}))\b")
_WORD = re.compile(r"\bthe word (\S+?)(?=, | and |\.?$|, *$| here\.)", re.MULTILINE)
_ITEM = re.compile(rf"^\d+\. (.+), ({'|'.join(sorted(PLACES, key=len, reverse=True))})$", re.MULTILINE)
_NUMBER = re.compile(rf"\b({'|'.join(_NUMBERS)}) (shape|word|thing)s?\b")


class Judged(NamedTuple):
    """Of one answer: facts that it states and how many of them are true, by kind; how many of the picture's things it
    names, and how many there are."""

    stated: Mapping[str, int]
    true: Mapping[str, int]
    named: int
    things: int


def judge(answer: str, things: Sequence[Seen]) -> Judged:
    """Compare an answer with its picture. A thing that is named twice counts as wrong the second time."""
    stated, true = Counter[str](), Counter[str]()
    named = 0
    for kind, pattern, is_text in (("shape", _SHAPE, False), ("word", _WORD, True)):
        there = Counter(thing.name for thing in things if thing.is_text is is_text)
        said = Counter(pattern.findall(answer))
        stated[kind], true[kind] = said.total(), (said & there).total()
        named += true[kind]
    items = Counter(_ITEM.findall(answer))
    places = Counter((thing.described, thing.place) for thing in things)
    stated["place"], true["place"] = items.total(), (items & places).total()
    numbers = _NUMBER.findall(answer)
    shapes = sum(not thing.is_text for thing in things)
    right = {"shape": shapes, "word": len(things) - shapes, "thing": len(things)}
    stated["number"] = len(numbers)
    true["number"] = sum(_NUMBERS.index(number) == right[noun] for number, noun in numbers)
    return Judged(stated, true, named, len(things))
