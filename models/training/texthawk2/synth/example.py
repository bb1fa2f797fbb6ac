"""One training or test example: a picture and a conversation about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from models.families.texthawk2.coordinates import Box, format_box, parse_boxes


@dataclass(frozen=True)
class Example:
    """``image`` RGB; ``others``: further pictures, which follow it. ``turns`` of (question, answer) as plain text,
    boxes written as their seven tokens.

    ``boxes``: all boxes of the turns in the order in which the text has them, not yet rounded to steps.
    """

    image: Image.Image
    task: str
    turns: tuple[tuple[str, str], ...]
    boxes: tuple[Box, ...] = ()
    others: tuple[Image.Image, ...] = ()

    def __post_init__(self) -> None:
        if not self.turns:
            raise ValueError(f"{self.task}: nothing is asked")
        said = [box for turn in self.turns for text in turn for box in parse_boxes(text)]
        if said != [box.rounded() for box in self.boxes]:
            raise ValueError(f"{self.task}: the boxes of the text and of the example differ")

    @property
    def images(self) -> tuple[Image.Image, ...]:
        """All pictures, in the order in which they are shown."""
        return (self.image, *self.others)


def box_text(box: Box) -> str:
    """The seven tokens of ``box``."""
    return format_box(*box)


def pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    """One of ``choices``."""
    return choices[int(rng.integers(len(choices)))]
