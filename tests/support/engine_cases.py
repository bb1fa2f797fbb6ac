"""Every engine that ships, made the same way, for the contract suite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from serving.domain import Pixels
from serving.replica.staged.base import StagedEngine
from serving.replica.staged.engine import RowEngine
from tests.support.fake_engine import FakeEngine
from tests.support.models import nano_bytes_per_sample, nano_runner, nano_variant

_POISON = 255


@dataclass(frozen=True, kw_only=True)
class EngineCase:
    """``make(max_samples)`` builds an engine with room for so many; ``image(n)`` is its n-th input; ``poison()``
    is an input that its model cannot take."""

    name: str
    make: Callable[[int], StagedEngine]
    image: Callable[[int], Pixels]
    poison: Callable[[], Pixels]
    tolerance: float
    """How far regrouping samples may move a probability: float32 rounding of other kernels for other batch sizes."""


def _fake() -> EngineCase:
    def make(max_samples: int) -> FakeEngine:
        return FakeEngine(fails=lambda pixels: int(pixels.flat[0]) == _POISON, max_bytes=max_samples * 48)

    def image(number: int) -> Pixels:
        return np.full((4, 4, 3), number % 200, dtype=np.uint8)

    return EngineCase(
        name="fake", make=make, image=image, poison=lambda: np.full((4, 4, 3), _POISON, np.uint8), tolerance=0.0
    )


def _early_exit() -> EngineCase:
    def make(max_samples: int) -> RowEngine:
        size = nano_bytes_per_sample()
        return RowEngine(nano_runner(), bytes_per_sample=size, max_bytes=2 * size * max_samples)

    def image(number: int) -> Pixels:
        side = nano_variant().io.input_size
        return np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)

    return EngineCase(
        name="early-exit", make=make, image=image, poison=lambda: np.zeros((5, 7, 3), np.uint8), tolerance=2e-5
    )


@cache
def engine_cases() -> tuple[EngineCase, ...]:
    """The cases, by name."""
    return _fake(), _early_exit()
