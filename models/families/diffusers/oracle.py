"""The pipeline's own output: diffusers' modular pipeline, and its classic one, on the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from models.contract import Parity, Variant


def compare(variant: Variant, official: Path | None) -> Iterator[Parity]:
    raise NotImplementedError
