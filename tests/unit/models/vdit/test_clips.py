"""Rendered clips show what the scene says."""

from __future__ import annotations

import numpy as np
import pytest

from models.training.vdit.clips import PIXELS_PER_FRAME, RGB, SHORT_CLIP, SIZE, STEP, Clip, render
from models.training.vdit.scenes import BACKGROUNDS, COLOURS, DIRECTIONS, SHAPES, SPEEDS, Mover, Scene


def _centre(clip: Clip, background: str) -> list[tuple[float, float]]:
    """Of everything that differs from the background, frame by frame: x, y."""
    differs = np.abs(clip.astype(int) - RGB[background]).max(-1) > 60
    return [(float(np.nonzero(one)[1].mean()), float(np.nonzero(one)[0].mean())) for one in differs]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("speed", SPEEDS)
def test_object_moves_where_and_as_fast_as_the_scene_says(direction: str, speed: str) -> None:
    scene = Scene((Mover("white", "circle", direction, speed),), "black")
    clip = render(scene, SHORT_CLIP, np.random.default_rng(1))
    centres = np.array(_centre(clip, "black"))
    # the middle third: whole in the picture, whatever the start
    moved = (centres[18] - centres[10]) / 8
    assert moved == pytest.approx(np.array(STEP[direction]) * PIXELS_PER_FRAME[speed], abs=0.1)


@pytest.mark.parametrize("colour", COLOURS)
def test_object_has_the_colour_and_the_rest_is_background(colour: str) -> None:
    clip = render(Scene((Mover(colour, "square", "left"),), "gray"), SHORT_CLIP, np.random.default_rng(2))
    x, y = (round(value) for value in _centre(clip, "gray")[14])
    assert tuple(clip[14, y, x]) == RGB[colour]
    assert tuple(clip[14, (y + 32) % SIZE, x]) == RGB["gray"]


def test_shapes_differ_in_more_than_their_edges() -> None:
    clips = [
        render(Scene((Mover("white", shape, "left"),)), SHORT_CLIP, np.random.default_rng(3))[14] for shape in SHAPES
    ]
    for index, one in enumerate(clips):
        for other in clips[index + 1 :]:
            assert (np.abs(one.astype(int) - other).max(-1) > 100).sum() > 25


def test_same_generator_state_gives_the_same_clip() -> None:
    scene = Scene((Mover("red", "cross", "up"), Mover("blue", "circle", "left")), "brown")
    first, second = (render(scene, 9, np.random.default_rng(4)) for _ in range(2))
    assert np.array_equal(first, second)


def test_every_fourth_frame_is_every_fourth_of_all() -> None:
    scene = Scene((Mover("red", "cross", "up", "fast"),), "brown")
    whole = render(scene, SHORT_CLIP, np.random.default_rng(5))
    some = render(scene, SHORT_CLIP, np.random.default_rng(5), every=4)
    assert np.array_equal(some, whole[::4])


def test_long_clip_wraps_round_and_never_loses_its_object() -> None:
    scene = Scene((Mover("white", "square", "right", "fast"),))
    clip = render(scene, 93, np.random.default_rng(6))
    assert min((frame.max(-1) > 200).sum() for frame in clip) > 200


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_two_objects_keep_to_their_own_bands(background: str) -> None:
    scene = Scene((Mover("white", "square", "right"), Mover("green", "circle", "left")), background)
    clip = render(scene, SHORT_CLIP, np.random.default_rng(7))
    rows = [
        {int(row) for row in np.nonzero((np.abs(clip.astype(int) - RGB[colour]).max(-1) < 10).any((0, 2)))[0]}
        for colour in ("white", "green")
    ]
    assert rows[0]
    assert rows[1]
    assert not rows[0] & rows[1]
