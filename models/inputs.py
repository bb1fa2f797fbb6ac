"""One row of a unary or staged family's input: a picture, or what goes in by name. NumPy only.

A family that takes a picture and nothing else gets the picture itself; any other gets a mapping with ``picture``
(uint8), ``prompt`` (what its part ``words`` makes of the text) and ``seed`` (int64), whichever its io says that it
takes. The host stacks rows of equal shapes.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from models.contract import Family, Variant
from models.io import ImageIO

Array: TypeAlias = npt.NDArray[Any]
Inputs: TypeAlias = Array | Mapping[str, Array]


def row_of(picture: Array | None = None, prompt: Array | None = None, seed: int | None = None) -> Inputs:
    """Put a row together."""
    if picture is not None and prompt is None and seed is None:
        return picture
    parts = {"picture": picture, "prompt": prompt, "seed": None if seed is None else np.array(seed, np.int64)}
    return {name: part for name, part in parts.items() if part is not None}


def blank_row(family: Family, variant: Variant) -> Inputs:
    """The largest row that there is, black and without words: for warming up."""
    io = variant.io
    if not isinstance(io, ImageIO):
        return np.zeros((io.input_size, io.input_size, 3), np.uint8)
    return row_of(
        picture=np.zeros((io.largest.height, io.largest.width, 3), np.uint8) if io.takes_picture else None,
        prompt=family.part("words")(variant)("") if io.takes_prompt else None,
        seed=0 if io.is_seeded else None,
    )


def nbytes_of(inputs: Inputs) -> int:
    """Bytes of a row."""
    return sum(part.nbytes for part in inputs.values()) if isinstance(inputs, Mapping) else inputs.nbytes


def shape_of(inputs: Inputs) -> Hashable:
    """Rows that are equal in this may be stacked."""
    return tuple((name, part.shape) for name, part in inputs.items()) if isinstance(inputs, Mapping) else inputs.shape
