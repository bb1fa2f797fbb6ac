"""Engines that tests load in another process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from models.contract import Point
from serving.replica.staged.base import Measured
from serving.replica.staged.engine import Loaded, RowEngine, as_staged
from tests.support.models import nano_bytes_per_sample, nano_runner

MAX_ROWS = 4


class Scale:
    """``models.contract.Unary``: picture times factor plus seed. NaN in a picture makes its row fail."""

    def forward(self, batch: Mapping[str, torch.Tensor], points: Sequence[Point]) -> Mapping[str, torch.Tensor]:
        factors = torch.tensor([float(point["factor"]) for point in points]).reshape(-1, 1, 1)
        return {"image": batch["picture"] * factors + batch["seed"].reshape(-1, 1, 1)}


def scale(factor: float) -> Loaded:
    """Says that it measured its stage."""
    engine = RowEngine(as_staged(Scale()), bytes_per_sample=1, max_bytes=2 * MAX_ROWS, defaults={"factor": factor})
    return Loaded(engine, Measured((1,), ((0.5,),)))


class _Telling(RowEngine):
    """Writes down what it is told to release."""

    def __init__(self, path: str) -> None:
        super().__init__(as_staged(Scale()), bytes_per_sample=1, max_bytes=2 * MAX_ROWS, defaults={"factor": 1.0})
        self._path = path

    def release(self, sample_id: int) -> None:
        super().release(sample_id)
        with open(self._path, "a", encoding="ascii") as file:
            file.write(f"{sample_id}\n")


def telling(path: str) -> Loaded:
    return Loaded(_Telling(path))


def nano_engine(runner: Any) -> RowEngine:
    return RowEngine(runner, bytes_per_sample=nano_bytes_per_sample(), max_bytes=1 << 30)


def nano(_: None) -> Loaded:
    return Loaded(nano_engine(nano_runner()))


def broken(_: None) -> Loaded:
    raise ValueError("no such model")
