"""What the text of a request says about the length of its answer, and which benign answers it is compared with.

The picture of a request is left out on purpose: it is what an attacker crafts. So are ``max_tokens`` and the tenant's
past, lest a sender stretch its own bound. Whoever controls the text can ask for a long answer in plain words; that is
no attack by a picture, and its price is the budget's business.

Features are hashed words and pairs of neighbours (K. Weinberger et al., 0902.2206, with signs), counts beside them.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

_WORD = re.compile(r"\d+|[^\W\d_]+|[^\w\s]")
_MAX_WORDS = 256
"""At each end of a text: a request is not dearer to look at because it is long."""
_MAX_WORD_CHARACTERS = 64
_MAX_NUMBER_DIGITS = 6
_NUM_COUNTS = 7
MIN_DIMENSIONS = _NUM_COUNTS + 1
BANDS = (16, 64, 256, 1024)
"""Predicted tokens at which a group ends and the next one begins."""
POOLED = "all"
"""The group of all benign answers."""
OTHERS = "others"
"""That of all which are compared with no group of their own."""


class Asked(NamedTuple):
    """What the picture of a request cannot change. ``text``: of the system's and the last user's turn, one line each.
    ``is_structured``: whether the answer follows a schema."""

    text: str
    num_images: int = 0
    num_turns: int = 1
    is_structured: bool = False


def features(asked: Asked, dimensions: int) -> dict[int, float]:
    """Sparse: index to value; the hashed part has length 1. The hash has no key and is the same everywhere.

    Raises: ValueError: fewer than ``MIN_DIMENSIONS``.
    """
    if dimensions < MIN_DIMENSIONS:
        raise ValueError(f"dimensions is {dimensions}; need at least {MIN_DIMENSIONS}")
    words = _words(asked.text)
    found = dict(enumerate(_counts(asked, words)))
    hashed: dict[int, float] = {}
    for piece in (*words, *(f"{one} {two}" for one, two in pairwise(words))):
        code = zlib.crc32(piece.encode())
        place = _NUM_COUNTS + (code >> 1) % (dimensions - _NUM_COUNTS)
        hashed[place] = hashed.get(place, 0.0) + (1.0 if code & 1 else -1.0)
    norm = math.sqrt(sum(value * value for value in hashed.values())) or 1.0
    found.update((place, value / norm) for place, value in hashed.items() if value)
    return found


def _words(text: str) -> list[str]:
    """Its first and its last words."""
    reach = 8 * _MAX_WORDS
    parts = [text] if len(text) <= 2 * reach else [text[:reach], text[-reach:]]
    found = [[word[:_MAX_WORD_CHARACTERS].lower() for word in _WORD.findall(part)] for part in parts]
    words = found[0] if len(found) == 1 else found[0][:_MAX_WORDS] + found[1][-_MAX_WORDS:]
    return words if len(words) <= 2 * _MAX_WORDS else words[:_MAX_WORDS] + words[-_MAX_WORDS:]


def _counts(asked: Asked, words: Sequence[str]) -> tuple[float, ...]:
    numbers = [int(word[:_MAX_NUMBER_DIGITS]) for word in words if word.isdecimal()]
    counts = (
        math.log1p(len(asked.text)),
        math.log1p(len(words)),
        math.log1p(max(numbers, default=0)),
        math.log1p(asked.num_images),
        math.log1p(asked.num_turns),
        float(asked.is_structured),
        float("?" in words),
    )
    assert len(counts) == _NUM_COUNTS, "places of counts come before those of words"
    return counts


@dataclass(frozen=True, slots=True, kw_only=True)
class TextModel:
    """Expected log(1 + tokens) of an answer: linear in ``features``, one weight for each dimension.

    Raises: ValueError: too few weights, or one that is not finite.
    """

    weights: tuple[float, ...]
    intercept: float = 0.0

    def __post_init__(self) -> None:
        if len(self.weights) < MIN_DIMENSIONS:
            raise ValueError(f"the text model has {len(self.weights)} weights; need at least {MIN_DIMENSIONS}")
        if not all(map(math.isfinite, (self.intercept, *self.weights))):
            raise ValueError("a weight of the text model is not finite")

    def log_tokens(self, asked: Asked) -> float:
        """Never negative."""
        values: Mapping[int, float] = features(asked, len(self.weights))
        return max(0.0, self.intercept + sum(self.weights[place] * value for place, value in values.items()))


def group_of(asked: Asked, log_tokens: float) -> str:
    """Its group (Mondrian conformal prediction): structured or free, and the band of its predicted length."""
    tokens = math.expm1(log_tokens)
    kind = "structured" if asked.is_structured else "free"
    return f"{kind}-{next((str(edge) for edge in BANDS if tokens < edge), 'more')}"
