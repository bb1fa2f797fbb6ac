"""The pre-screen: does a picture look as if something had been added to it, before any model sees it?

A logistic head over ``serving.guard.features`` and their products, two at a time; what it was trained on, and on which
attacks it never was, is in the provenance of ``screen_head.json`` (``python -m tests.benchmarks.guard.train_screen``
writes it). The score becomes a p-value by benign pictures that training did not see, apart for each *kind* of them, and
the largest counts: a picture is as strange as it says among noise, among JPEG and among drawings alike. So no kind of
benign picture is found strange more often than p, however rare it was in calibration; the price is that attacks that
look like noise pass.

It looks at pixels and not at harm, and who knows the head can fool it with a few gradients. It is cheap evidence that
has a more expensive look ordered, never a reason to end an answer.
"""

from __future__ import annotations

import hmac
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from serving.guard.features import NAMES, Pixels, features

FORMAT: Final = 1
FILE: Final = Path(__file__).with_name("screen_head.json")


class HeadFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``screen_head.json``. ``mean`` and ``scale``: of the features in training. ``weights``: of what ``expanded``
    gives. ``benign``: scores by kind, ascending. ``provenance``: how it was made, for people."""

    format: int
    features: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float
    benign: dict[str, tuple[float, ...]]
    provenance: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ImageScreen:
    """Stateless; safe to share between threads. ``secret``: decides which part is looked at of a picture of many tiles.

    Raises: ValueError: the head is of other features, or has no benign scores to be compared with.
    """

    head: HeadFile
    secret: bytes = b""

    def __post_init__(self) -> None:
        head, num = self.head, len(NAMES)
        if head.format != FORMAT or head.features != NAMES:
            raise ValueError("the head is of other features; train it again")
        if (len(head.mean), len(head.scale), len(head.weights)) != (num, num, num_terms(num)) or min(head.scale) <= 0:
            raise ValueError(f"the head needs {num} means, as many positive scales and {num_terms(num)} weights")
        if not head.benign or not all(head.benign.values()):
            raise ValueError("the head has a kind without benign scores; calibrate it")
        if any(list(scores) != sorted(scores) for scores in head.benign.values()):
            raise ValueError("the head's benign scores are not ascending; sort them")

    def score(self, tiles: Pixels) -> float:
        """Log-odds; larger is stranger. ``tiles``: uint8 (S, S, 3) or (T, S, S, 3)."""
        found = features(tiles, self.secret)
        return float(expanded(found, self.head.mean, self.head.scale) @ self.head.weights) + self.head.bias

    def p_value(self, tiles: Pixels) -> float:
        """At most how often a benign picture of any kind looks as strange, in (0, 1]."""
        return p_value(self.head.benign, self.score(tiles))


def num_terms(num_features: int) -> int:
    """Of ``expanded``."""
    return num_features + num_features * (num_features + 1) // 2


def expanded(found: npt.ArrayLike, mean: npt.ArrayLike, scale: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Standardised features (..., F), clipped, and after them their products: (..., ``num_terms(F)``)."""
    values = np.asarray(found, np.float64)
    standard = np.clip((values - np.asarray(mean)) / np.asarray(scale), -MOST, MOST)
    one, other = np.triu_indices(standard.shape[-1])
    return np.concatenate([standard, 0.5 * standard[..., one] * standard[..., other]], axis=-1)


MOST: Final = 4.0
"""Standard deviations beyond which a feature says no more: none decides alone."""


def p_value(benign: Mapping[str, tuple[float, ...]], score: float) -> float:
    """The largest over all kinds of (1 + scores that are as large) / (1 + scores)."""
    return max((1 + len(scores) - bisect_left(scores, score)) / (1 + len(scores)) for scores in benign.values())


def read_head(path: Path = FILE) -> HeadFile:
    """Raises: ValueError: it is no head. OSError: it cannot be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=HeadFile)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise ValueError(f"{path.name}: {error}") from None


@lru_cache(maxsize=1)
def _shipped() -> HeadFile:
    return read_head()


def shipped_screen(secret: bytes = b"") -> ImageScreen:
    """That which comes with the server, under a deployment's secret."""
    return ImageScreen(_shipped(), hmac.digest(secret, b"vireo strips of the screen", "sha256") if secret else b"")
