"""Boxes as shares of an image, and as the seven tokens that say them in a text (``tokens.box_text``).

A coordinate is rounded to one of 1,000 steps: 0 is the left or upper edge, 999 the right or lower one.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from models.contract import TextBox
from models.families.texthawk2.tokens import BOX_PATTERN, BOX_TOKENS, NUM_COORDINATES, box_text, find_boxes

STEPS = NUM_COORDINATES - 1
TOKENS_PER_BOX = 7

_BOX_TOKEN = re.compile(
    "|".join(re.escape(token) for token in BOX_TOKENS if not token[1:-1].isdigit()) + r"|<[0-9]{3}>"
)


class Box(NamedTuple):
    """Corners as shares of the image's width and height: 0 <= x1 <= x2 <= 1, 0 <= y1 <= y2 <= 1."""

    x1: float
    y1: float
    x2: float
    y2: float

    def rounded(self) -> Box:
        """The nearest box that the tokens can say."""
        return Box(*(round(value * STEPS) / STEPS for value in self))


def format_box(x1: float, y1: float, x2: float, y2: float) -> str:
    """The seven tokens of a box given in shares of the image.

    Raises:
        ValueError: a coordinate outside 0..1 (also NaN), or corners in the wrong order.
    """
    values = (x1, y1, x2, y2)
    if not all(0.0 <= value <= 1.0 for value in values):
        raise ValueError(f"box {values} must lie within 0..1; divide by the image's width and height")
    return box_text([round(value * STEPS) for value in values])


def parse_boxes(text: str) -> list[Box]:
    """Every box in ``text``, in order.

    Raises:
        ValueError: a box token stands outside a whole box, or a box's corners are in the wrong order.
    """
    steps = find_boxes(text)
    if len(_BOX_TOKEN.findall(text)) != TOKENS_PER_BOX * len(steps):
        raise ValueError("a box token is not part of a whole box, <box><x1><y1><,><x2><y2></box>")
    boxes = [Box(*(value / STEPS for value in box)) for box in steps]
    for box, values in zip(boxes, steps, strict=True):
        if box.x1 > box.x2 or box.y1 > box.y2:
            raise ValueError(f"box {values} must be left, top, right, bottom; its corners are swapped")
    return boxes


def boxes_in(text: str) -> list[TextBox]:
    """Every whole box of an answer, in order, its corners put in order: a model may write them in any."""
    found = []
    for match in BOX_PATTERN.finditer(text):
        x1, y1, x2, y2 = (int(value) / STEPS for value in match.groups())
        found.append(TextBox(*match.span(), min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)))
    return found


def iou(first: Box, second: Box) -> float:
    """Intersection over union, 0..1; 0 where both are empty."""
    width = min(first.x2, second.x2) - max(first.x1, second.x1)
    height = min(first.y2, second.y2) - max(first.y1, second.y1)
    shared = max(width, 0.0) * max(height, 0.0)
    union = _area(first) + _area(second) - shared
    return shared / union if union > 0 else 0.0


def _area(box: Box) -> float:
    return (box.x2 - box.x1) * (box.y2 - box.y1)
