"""Tiles with a character class per patch."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from models.training.texthawk2.synth.camera import other_weight, turned
from models.training.texthawk2.synth.charset import CHAR_CLASSES, CLASS_OF, LATIN
from models.training.texthawk2.synth.dense import (
    COLUMNS,
    DENSE_CLASSES,
    GRID,
    PATCH,
    TILE,
    dense_tile,
    labels_under,
    write,
)
from models.training.texthawk2.synth.fonts import SPLITS, FontSet, Split
from models.training.texthawk2.synth.scene import COLOURS
from tests.support.synth_fonts import DEJAVU, WITH_CHINESE, needs_chinese_fonts

_TURNS = [
    (0.0, 1.0, 1.0, 0.0),
    (8.0, 1.0, 1.0, 0.0),
    (-8.0, 0.92, 1.2, 0.0),
    (5.0, 1.08, 0.8, -0.2),
    (-8.0, 0.92, 0.8, 0.2),
]


@pytest.mark.parametrize("split", SPLITS)
def test_tile_has_text_and_is_drawn_again_from_the_same_seed(split: Split) -> None:
    pixels, labels = dense_tile(np.random.default_rng(5), split, DEJAVU)
    again, labels_again = dense_tile(np.random.default_rng(5), split, DEJAVU)
    other, _ = dense_tile(np.random.default_rng(6), split, DEJAVU)
    assert (pixels.shape, pixels.dtype) == ((TILE, TILE, 3), np.uint8)
    assert (labels.shape, labels.dtype) == ((GRID, GRID * COLUMNS), np.int16)
    assert 60 < np.count_nonzero(labels) < labels.size
    assert ((labels <= len(LATIN)) | (labels >= len(CHAR_CLASSES))).all(), "no Chinese without its fonts"
    np.testing.assert_array_equal(pixels, again)
    np.testing.assert_array_equal(labels, labels_again)
    assert (pixels != other).any()


@needs_chinese_fonts
def test_two_lines_in_five_are_chinese() -> None:
    rng = np.random.default_rng(0)
    labels = np.stack([dense_tile(rng, "train", WITH_CHINESE)[1] for _ in range(60)])
    text = labels[(labels > 0) & (labels < len(CHAR_CLASSES))]
    assert 0.3 < np.mean(text > len(LATIN)) < 0.6, "of the area; they are twice as wide as Latin ones"


def test_some_tiles_have_shapes_and_their_patches_have_the_colour_of_their_name() -> None:
    rng = np.random.default_rng(0)
    tiles = [dense_tile(rng, "train", DEJAVU) for _ in range(60)]
    assert 0.3 < np.mean([(labels >= len(CHAR_CLASSES)).any() for _, labels in tiles]) < 0.6
    for name, colour in COLOURS.items():
        classes = [number for number, shown in enumerate(DENSE_CLASSES) if shown.split(" ")[0] == name]
        seen = [pixels[7::14, 7::14][np.isin(labels[:, 1::COLUMNS], classes)] for pixels, labels in tiles]
        assert np.abs(np.median(np.concatenate(seen), axis=0) - colour).max() < 20


@pytest.mark.parametrize("text", ["A", "Wg.", "I i"])
def test_written_characters_are_noted_where_their_ink_is(text: str) -> None:
    canvas, under = Image.new("RGB", (160, 80)), np.zeros((80, 160), np.int16)
    write(canvas, under, text, DEJAVU.latin[0][0], 40, (10, 60), 4.0, (255, 255, 255))
    ink = np.asarray(canvas)[..., 0] > 128
    assert set(np.unique(under)) == {0} | {CLASS_OF[char] for char in text if char != " "}
    assert np.count_nonzero(ink & (under > 0)) > 0.97 * np.count_nonzero(ink)
    order = [under[:, x].max() for x in range(160) if under[:, x].any()]
    assert [order[0], order[-1]] == [CLASS_OF[text[0]], CLASS_OF[text[-1]]]


def test_writing_stops_at_the_edges() -> None:
    canvas, under = Image.new("RGB", (50, 50)), np.zeros((50, 50), np.int16)
    write(canvas, under, "WWWW", DEJAVU.latin[0][0], 40, (-20, 20), 0.0, (255, 255, 255))
    assert set(np.unique(under)) == {0, CLASS_OF["W"]}


@pytest.mark.parametrize(("degrees", "scale", "stretch", "slant"), _TURNS)
def test_labels_turn_with_the_picture(degrees: float, scale: float, stretch: float, slant: float) -> None:
    """A white rectangle with a class: a place has the class exactly where it is white."""
    turn, size = turned(degrees, scale, (TILE, TILE), stretch, slant)
    under = np.zeros((size[1], size[0]), np.int16)
    under[40:160, 60:120] = 7
    canvas = Image.fromarray(np.where(under[..., None] > 0, 255, 0).astype(np.uint8).repeat(3, axis=2))
    picture = np.asarray(turn.apply(canvas, (TILE, TILE)))
    across = ((np.arange(GRID * COLUMNS) + 0.5) * PATCH / COLUMNS).astype(int)
    grey = picture[PATCH // 2 :: PATCH, across, 0]
    labels = labels_under(under, turn.coefficients)
    clear = (grey < 64) | (grey > 191)
    assert clear.mean() > 0.95
    assert labels[clear].any()
    assert np.mean((labels == 7)[clear] == (grey > 128)[clear]) > 0.995, "places lie up to half a pixel off"


@pytest.mark.parametrize(("degrees", "scale", "stretch", "slant"), _TURNS)
@pytest.mark.parametrize("output", [(TILE, TILE), (300, 90)])
def test_canvas_covers_the_turned_output(
    degrees: float, scale: float, stretch: float, slant: float, output: tuple[int, int]
) -> None:
    turn, size = turned(degrees, scale, output, stretch, slant)
    assert np.asarray(turn.apply(Image.new("L", size, 255), output)).min() >= 250


def test_stretch_widens_and_slant_leans() -> None:
    """A bar becomes half as wide again, its height stays; another leans to the right."""
    canvas = Image.new("L", (400, 400))
    wide, size = turned(0.0, 1.0, (200, 200), stretch=1.5)
    canvas.paste(255, (size[0] // 2 - 10, size[1] // 2 - 20, size[0] // 2 + 10, size[1] // 2 + 20))
    left, top, right, bottom = wide.apply(canvas, (200, 200)).point(lambda value: 255 * (value > 127)).getbbox() or ()
    assert (right - left, bottom - top) == (30, 40)
    leaning, size = turned(0.0, 1.0, (200, 200), slant=0.5)
    canvas = Image.new("L", size)
    canvas.paste(255, (size[0] // 2 - 2, size[1] // 2 - 40, size[0] // 2 + 2, size[1] // 2 + 40))
    ink = np.asarray(leaning.apply(canvas, (200, 200)))
    upper, lower = (np.flatnonzero(ink[row] > 127).mean() for row in (70, 130))
    assert upper - lower == pytest.approx(30, abs=1.5)


def test_other_weights_are_bolder_or_finer_and_stay_where_they_are() -> None:
    canvas = Image.new("RGB", (60, 40), "white")
    canvas.paste((0, 0, 0), (20, 10, 26, 30))
    rng = np.random.default_rng(0)
    inks = [(255 - np.asarray(other_weight(rng, canvas), float)[..., 0]) / 255 for _ in range(20)]
    amounts = np.array([ink.sum() for ink in inks])
    assert amounts.min() < 0.85 * 120 < 1.15 * 120 < amounts.max()
    assert all(np.average(np.arange(60), weights=ink.sum(0)) == pytest.approx(22.5, abs=0.01) for ink in inks)


def test_points_go_to_the_canvas_and_back() -> None:
    turn, (width, height) = turned(7.0, 0.93, (224, 224), 1.1, 0.1)
    assert turn.to_output(*turn.to_canvas(31.0, 170.0)) == pytest.approx((31.0, 170.0))
    assert turn.to_canvas(112.0, 112.0) == pytest.approx((width / 2, height / 2)), "centre to centre"


def test_test_tiles_use_the_held_out_fonts_alone() -> None:
    """A set whose train fonts do not exist still draws test tiles."""
    only_test = FontSet(latin=(), chinese=(), held_out_latin=DEJAVU.held_out_latin, held_out_chinese=())
    assert dense_tile(np.random.default_rng(0), "test", only_test)[1].any()
    with pytest.raises(ValueError, match="no latin fonts"):
        dense_tile(np.random.default_rng(0), "train", only_test)
