from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.families.texthawk2.coordinates import STEPS, TOKENS_PER_BOX, Box, format_box, iou, parse_boxes
from models.families.texthawk2.tokens import BOX_TOKENS

_shares = st.floats(0.0, 1.0)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    left, right = sorted((draw(_shares), draw(_shares)))
    top, bottom = sorted((draw(_shares), draw(_shares)))
    return Box(left, top, right, bottom)


@given(boxes())
def test_box_survives_text_to_half_a_step(box: Box) -> None:
    (again,) = parse_boxes(f"It is in {format_box(*box)}.")
    assert again == box.rounded()
    assert all(abs(a - b) <= 0.5 / STEPS + 1e-12 for a, b in zip(box, again, strict=True))


@given(st.lists(boxes(), max_size=4))
def test_boxes_come_back_in_order(several: list[Box]) -> None:
    text = " and ".join(format_box(*box) for box in several)
    assert parse_boxes(text) == [box.rounded() for box in several]


@given(boxes())
def test_box_is_seven_known_tokens(box: Box) -> None:
    text, tokens = format_box(*box), []
    while text:
        token = next(token for token in BOX_TOKENS if text.startswith(token))
        tokens.append(token)
        text = text.removeprefix(token)
    assert len(tokens) == TOKENS_PER_BOX


def test_corners_of_the_image_are_the_first_and_the_last_step() -> None:
    assert format_box(0, 0, 1, 1) == "<box><000><000><,><999><999></box>"


@pytest.mark.parametrize(
    "values",
    [
        (-0.01, 0, 1, 1),
        (0, 0, 1.01, 1),
        (0, math.nan, 1, 1),
        (0, 0, math.inf, 1),
        (0.6, 0, 0.5, 1),
        (0, 0.6, 1, 0.5),
    ],
)
def test_impossible_box_is_refused(values: tuple[float, float, float, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        format_box(*values)


@pytest.mark.parametrize(
    "text",
    [
        "<box><000><000><,><999></box>",
        "<box><000><000><999><999></box>",
        "<box><000><000><,><999><999>",
        "<012>",
        "a <,> b",
        "<box><0000><000><,><999><999></box>",
        "<box> <000><000><,><999><999></box>",
        "<box><500><000><,><499><999></box>",
        "<box><000><000><,><999><999></box></box>",
    ],
)
def test_damaged_box_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="box"):
        parse_boxes(text)


@pytest.mark.parametrize("text", ["", "no box", "3 < 4 and 5 > 2", "<b>bold</b>", "<12>"])
def test_text_without_box_tokens_has_no_box(text: str) -> None:
    assert parse_boxes(text) == []


def test_iou_of_known_boxes() -> None:
    whole, left, middle = Box(0, 0, 1, 1), Box(0, 0, 0.5, 1), Box(0.25, 0, 0.75, 1)
    assert iou(whole, whole) == 1
    assert iou(whole, left) == pytest.approx(0.5)
    assert iou(left, middle) == pytest.approx(1 / 3)
    assert iou(left, Box(0.6, 0, 1, 1)) == 0
    assert iou(Box(0, 0, 0, 0), Box(0, 0, 0, 0)) == 0


@given(boxes(), boxes())
def test_iou_is_symmetric_and_bounded(first: Box, second: Box) -> None:
    assert iou(first, second) == iou(second, first)
    assert 0 <= iou(first, second) <= 1 + 1e-12
