"""What is written on the pictures: words, made-up words, codes, strings of Chinese characters.

``words.txt`` holds about 4,500 English words, two to twelve lower-case letters each, that occur often and in several
places in the documentation of Python and of common open-source packages. One word in eight is held out by a hash:
never seen in training, as a word or as part of a line. The same goes for made-up words and for Chinese strings.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

import numpy as np

from models.training.texthawk2.synth.charset import CHINESE
from models.training.texthawk2.synth.fonts import Split

_LIST = Path(__file__).with_name("words.txt")
_HELD_OUT_SHARE = 8
_START, _END = "<", ">"
# Letters and digits that no font makes look like another one; a code is read letter by letter, context does not help.
_CODE_CHARS = "abdefghkmnpqrtuyABDEFGHKLMNPQRTUY23456789"
# What was read wrong most often, 12% of the time and more (docs/experiments.md); training shows more of it.
_HARD = frozenset("rtlyvcIPML")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def held_out(text: str) -> bool:
    """Whether a text belongs to val and test (one in eight), the same on every machine; capitals do not matter."""
    return hashlib.sha256(text.lower().encode()).digest()[0] % _HELD_OUT_SHARE == 0


@lru_cache(maxsize=4)
def real_words(held: bool) -> tuple[str, ...]:
    """The listed words of train (``held`` false) or of val and test, in alphabetical order."""
    return tuple(word for word in _LIST.read_text(encoding="utf-8").split() if held_out(word) == held)


def latin_word(rng: np.random.Generator, split: Split, longest: int = 12) -> str:
    """A word of at most ``longest`` (5 or more) characters, some with capitals: 60% real, 25% made up, 15% codes.

    Never the same text in train as in val and test. Half of train's are the harder of two.
    """
    if split == "train" and rng.random() < 0.5:
        return max((_word(rng, split, longest) for _ in range(2)), key=_hardness)
    return _word(rng, split, longest)


def _hardness(word: str) -> float:
    return sum(letter in _HARD for letter in word) / len(word)


def _word(rng: np.random.Generator, split: Split, longest: int) -> str:
    while True:
        word = _any_word(rng, split != "train")
        if len(word) <= longest and held_out(word) == (split != "train"):
            return word


def _any_word(rng: np.random.Generator, held: bool) -> str:
    kind = rng.random()
    if kind < 0.60:
        words = real_words(held)
        return _with_capitals(rng, words[int(rng.integers(len(words)))])
    if kind < 0.85:
        word = made_up_word(rng)
        # A capital I before letters that make no known word looks like an l in most fonts.
        return word if word[0] == "i" else _with_capitals(rng, word)
    return code(rng)


def made_up_word(rng: np.random.Generator) -> str:
    """Letters that follow each other as in the training words, 3 to 10; one in four is fully random instead."""
    if rng.random() < 0.25:
        return "".join(_LETTERS[i] for i in rng.integers(26, size=int(rng.integers(3, 8))))
    table = _letter_pairs()
    while True:
        word, last = "", _START
        while len(word) <= 10:
            followers = table[last]
            last = followers[int(rng.integers(len(followers)))]
            if last == _END:
                break
            word += last
        if 3 <= len(word) <= 10:
            return word


def code(rng: np.random.Generator) -> str:
    """A number, a price, or a mix of letters and digits, 3 to 8 characters."""
    kind = rng.random()
    if kind < 0.3:
        return str(int(rng.integers(100, 100_000)))
    if kind < 0.5:
        return f"{int(rng.integers(1, 1000))}.{int(rng.integers(100)):02d}"
    length = int(rng.integers(3, 8))
    return "".join(_CODE_CHARS[i] for i in rng.integers(len(_CODE_CHARS), size=length))


def chinese_word(rng: np.random.Generator, split: Split, length: int | None = None) -> str:
    """``length`` (2 to 4 when None) random characters of ``CHINESE``; train never draws the held-out strings."""
    if length is not None and length < 2:
        raise ValueError(f"a Chinese string of {length} characters cannot be held out: take 2 or more")
    while True:
        count = length if length is not None else int(rng.integers(2, 5))
        text = "".join(CHINESE[i] for i in rng.integers(len(CHINESE), size=count))
        if held_out(text) == (split != "train"):
            return text


def _with_capitals(rng: np.random.Generator, word: str) -> str:
    kind = rng.random()
    if kind < 0.15:
        return word.upper()
    return word.capitalize() if kind < 0.40 else word


@lru_cache(maxsize=1)
def _letter_pairs() -> dict[str, str]:
    """Letter to the letters that follow it in training words, as often as they do."""
    followers: dict[str, list[str]] = {}
    for word in real_words(False):
        for first, second in zip(_START + word, word + _END, strict=True):
            followers.setdefault(first, []).append(second)
    return {letter: "".join(after) for letter, after in followers.items()}
