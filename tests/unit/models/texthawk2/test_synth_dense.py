"""Tiles with a character class per patch."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from models.training.texthawk2.synth.camera import canvas_size, turned
from models.training.texthawk2.synth.charset import CHAR_CLASSES, CLASS_OF, LATIN
from models.training.texthawk2.synth.dense import DENSE_CLASSES, GRID, PATCH, TILE, dense_tile, labels_at_centres, write
from models.training.texthawk2.synth.fonts import SPLITS, FontSet, Split
from models.training.texthawk2.synth.scene import COLOURS
from tests.support.synth_fonts import DEJAVU, WITH_CHINESE, needs_chinese_fonts

_TURNS = [(0.0, 1.0), (8.0, 1.0), (-8.0, 0.92), (5.0, 1.08)]


@pytest.mark.parametrize("split", SPLITS)
def test_tile_has_text_and_is_drawn_again_from_the_same_seed(split: Split) -> None:
    pixels, labels = dense_tile(np.random.default_rng(5), split, DEJAVU)
    again, labels_again = dense_tile(np.random.default_rng(5), split, DEJAVU)
    other, _ = dense_tile(np.random.default_rng(6), split, DEJAVU)
    assert (pixels.shape, pixels.dtype) == ((TILE, TILE, 3), np.uint8)
    assert (labels.shape, labels.dtype) == ((GRID, GRID), np.int16)
    assert 20 < np.count_nonzero(labels) < GRID * GRID
    assert ((labels <= len(LATIN)) | (labels >= len(CHAR_CLASSES))).all(), "no Chinese without its fonts"
    np.testing.assert_array_equal(pixels, again)
    np.testing.assert_array_equal(labels, labels_again)
    assert (pixels != other).any()


@needs_chinese_fonts
def test_half_of_the_characters_are_chinese() -> None:
    rng = np.random.default_rng(0)
    labels = np.stack([dense_tile(rng, "train", WITH_CHINESE)[1] for _ in range(60)])
    text = labels[(labels > 0) & (labels < len(CHAR_CLASSES))]
    assert 0.5 < np.mean(text > len(LATIN)) < 0.8, "of the area; they are twice as wide as Latin ones"


def test_some_tiles_have_shapes_and_their_patches_have_the_colour_of_their_name() -> None:
    rng = np.random.default_rng(0)
    tiles = [dense_tile(rng, "train", DEJAVU) for _ in range(60)]
    assert 0.3 < np.mean([(labels >= len(CHAR_CLASSES)).any() for _, labels in tiles]) < 0.6
    for name, colour in COLOURS.items():
        classes = [number for number, shown in enumerate(DENSE_CLASSES) if shown.split(" ")[0] == name]
        seen = [pixels[7::14, 7::14][np.isin(labels, classes)] for pixels, labels in tiles]
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


@pytest.mark.parametrize(("degrees", "scale"), _TURNS)
def test_labels_turn_with_the_picture(degrees: float, scale: float) -> None:
    """A white rectangle with a class: a patch has the class exactly where its centre is white."""
    size = canvas_size(degrees, scale, (TILE, TILE))
    turn = turned(degrees, scale, size, (TILE, TILE))
    under = np.zeros((size[1], size[0]), np.int16)
    under[40:160, 60:120] = 7
    canvas = Image.fromarray(np.where(under[..., None] > 0, 255, 0).astype(np.uint8).repeat(3, axis=2))
    grey = np.asarray(turn.apply(canvas, (TILE, TILE)))[PATCH // 2 :: PATCH, PATCH // 2 :: PATCH, 0]
    labels = labels_at_centres(under, turn.coefficients)
    clear = (grey < 64) | (grey > 191)
    assert clear.mean() > 0.95
    assert labels[clear].any()
    np.testing.assert_array_equal((labels == 7)[clear], (grey > 128)[clear])


@pytest.mark.parametrize(("degrees", "scale"), _TURNS)
@pytest.mark.parametrize("output", [(TILE, TILE), (300, 90)])
def test_canvas_covers_the_turned_output(degrees: float, scale: float, output: tuple[int, int]) -> None:
    size = canvas_size(degrees, scale, output)
    turn = turned(degrees, scale, size, output)
    assert np.asarray(turn.apply(Image.new("L", size, 255), output)).min() >= 250


def test_points_go_to_the_canvas_and_back() -> None:
    turn = turned(7.0, 0.93, (280, 290), (224, 224))
    assert turn.to_output(*turn.to_canvas(31.0, 170.0)) == pytest.approx((31.0, 170.0))
    assert turn.to_canvas(112.0, 112.0) == pytest.approx((140.0, 145.0)), "centre to centre"


def test_test_tiles_use_the_held_out_fonts_alone() -> None:
    """A set whose train fonts do not exist still draws test tiles."""
    only_test = FontSet(latin=(), chinese=(), held_out_latin=DEJAVU.held_out_latin, held_out_chinese=())
    assert dense_tile(np.random.default_rng(0), "test", only_test)[1].any()
    with pytest.raises(ValueError, match="no latin fonts"):
        dense_tile(np.random.default_rng(0), "train", only_test)
