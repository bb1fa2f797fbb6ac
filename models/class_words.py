"""Words to the number of a class: "a green 7", "green seven", "the 7 in green". Free of torch.

A prompt names a class if both have the same words, in any order, whatever articles, plurals and number words it uses.
Names of ImageNet's classes are WordNet's, in files that come with timm, which is not imported for them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from functools import cache, lru_cache
from importlib.util import find_spec
from itertools import product
from pathlib import Path

IMAGENET = "imagenet"
_WORD = re.compile(r"[^\W_]+")
_PLAIN = re.compile(r"\s*class\s+(\d{1,4})\s*", re.IGNORECASE)
_LEFT_OUT = frozenset(("a", "an", "the", "of", "in", "on", "picture", "photo", "image", "drawing", "digit", "number"))
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_DIGITS = {name: str(digit) for digit, name in enumerate(_NUMBERS)}
_NUM_SHOWN = 4
_NUM_KEPT = 1024
"""Prompts, each of which a runner asks for in every step; there is no end of those that name one class."""


@lru_cache(maxsize=_NUM_KEPT)
def number_of(classes: str | tuple[tuple[str, ...], ...], prompt: str) -> int:
    """The class that a prompt names; ``class 207`` is its number. ``classes``: IMAGENET, or words of which one of each
    tuple makes a class, the first tuple slowest.

    Raises: ValueError: none or several, in words fit for the caller.
    """
    names = _names(classes)
    if (plain := _PLAIN.fullmatch(prompt)) and int(plain[1]) < len(names):
        return int(plain[1])
    found = _index(classes).get(_key(prompt), ())
    if len(found) == 1:
        return found[0]
    if found:
        several = " or ".join(f"'class {number}' ({', '.join(names[number])})" for number in found)
        raise ValueError(f"prompt {prompt[:60]!r} names several classes; say {several}")
    raise ValueError(f"prompt {prompt[:60]!r} names no class of this model; {_hint(classes, prompt)}")


def _hint(classes: str | Sequence[Sequence[str]], prompt: str) -> str:
    if not isinstance(classes, str):
        words = ", and ".join(f"one of {', '.join(axis)}" for axis in classes)
        return f"ask for {words}, such as 'a {' '.join(axis[-1] for axis in classes)}'"
    known = [name for each in _names(classes) for name in each]
    close = get_close_matches(prompt.lower(), known, _NUM_SHOWN, 0.5) or known[:_NUM_SHOWN]
    return f"ask for one of ImageNet's {len(_names(classes))} classes, such as {', '.join(map(repr, close))}"


@cache
def _index(classes: str | tuple[tuple[str, ...], ...]) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Numbers of classes by the words that name them."""
    index: dict[tuple[str, ...], tuple[int, ...]] = {}
    for number, names in enumerate(_names(classes)):
        for key in {_key(name) for name in names}:
            index[key] = (*index.get(key, ()), number)
    return index


@cache
def _names(classes: str | tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
    """All names of each class."""
    if classes != IMAGENET:
        return tuple((" ".join(words),) for words in product(*classes))
    synsets = _lines("imagenet_synsets.txt")
    names = dict(line.split("\t") for line in _lines("imagenet_synset_to_lemma.txt"))
    return tuple(tuple(name.lower() for name in names[synset].split(", ")) for synset in synsets)


def _lines(file: str) -> list[str]:
    found = find_spec("timm")
    if found is None or found.origin is None:
        raise ValueError("names of ImageNet's classes come with timm, which is not installed; say 'class 207'")
    return (Path(found.origin).parent / "data" / "_info" / file).read_text("utf-8").splitlines()


def _key(text: str) -> tuple[str, ...]:
    words = (_singular(word) for word in _WORD.findall(text.lower()))
    return tuple(sorted(_DIGITS.get(word, word) for word in words if word not in _LEFT_OUT))


def _singular(word: str) -> str:
    if word.endswith(("sses", "shes", "ches", "xes")):
        return word[:-2]
    if word.endswith("ies") and len(word) > len("dies"):
        return f"{word[:-3]}y"
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 1 else word
