"""Boxes in text: 1,000 coordinate tokens, seven tokens per box.

A box is ``<box><x1><y1><,><x2><y2></box>``, each coordinate one of ``<000>``..``<999>``: the share of the image's width
or height, in 999 steps, rounded.
"""

from __future__ import annotations

import re
from typing import NamedTuple

STEPS = 999
BOX_OPEN, BOX_CLOSE, BOX_COMMA = "<box>", "</box>", "<,>"
COORDINATE_TOKENS = tuple(f"<{step:03d}>" for step in range(STEPS + 1))
BOX_TOKENS = (BOX_OPEN, BOX_CLOSE, BOX_COMMA, *COORDINATE_TOKENS)
TOKENS_PER_BOX = 7

_BOX = re.compile(r"<box><(\d{3})><(\d{3})><,><(\d{3})><(\d{3})></box>", re.ASCII)
_ANY_BOX_TOKEN = re.compile(r"<box>|</box>|<,>|<\d{3}>", re.ASCII)


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

    Raises ``ValueError`` for a coordinate outside 0..1 (also NaN) and for corners in the wrong order.
    """
    values = (x1, y1, x2, y2)
    if not all(0.0 <= value <= 1.0 for value in values):
        raise ValueError(f"box {values}: coordinates must lie in 0..1")
    if x1 > x2 or y1 > y2:
        raise ValueError(f"box {values}: the first corner must be the upper left one")
    left, top, right, bottom = (COORDINATE_TOKENS[round(value * STEPS)] for value in values)
    return f"{BOX_OPEN}{left}{top}{BOX_COMMA}{right}{bottom}{BOX_CLOSE}"


def parse_boxes(text: str) -> list[Box]:
    """Every box in ``text``, in order.

    Raises ``ValueError`` where a box token stands outside a whole box, and for corners in the wrong order.
    """
    stray = _ANY_BOX_TOKEN.search(_BOX.sub("\0", text))
    if stray:
        raise ValueError(f"{stray.group()} is not part of a whole box (<box><x1><y1><,><x2><y2></box>)")
    boxes = [Box(*(int(step) / STEPS for step in match.groups())) for match in _BOX.finditer(text)]
    for box in boxes:
        if box.x1 > box.x2 or box.y1 > box.y2:
            raise ValueError(f"{format_steps(box)}: the first corner must be the upper left one")
    return boxes


def format_steps(box: Box) -> str:
    """The box in steps of 1/999, for messages."""
    return "box (" + ", ".join(str(round(value * STEPS)) for value in box) + ")"


def iou(first: Box, second: Box) -> float:
    """Intersection over union, 0..1; 0 where both are empty."""
    width = min(first.x2, second.x2) - max(first.x1, second.x1)
    height = min(first.y2, second.y2) - max(first.y1, second.y1)
    shared = max(width, 0.0) * max(height, 0.0)
    union = _area(first) + _area(second) - shared
    return shared / union if union > 0 else 0.0


def _area(box: Box) -> float:
    return (box.x2 - box.x1) * (box.y2 - box.y1)
