"""Sentences of scenes, and back; what is held out."""

from __future__ import annotations

import numpy as np
import pytest

from models.training.vdit.prompts import parse_prompt
from models.training.vdit.scenes import (
    COLOURS,
    DIRECTIONS,
    SHAPES,
    Mover,
    Scene,
    held_out_combinations,
    is_held_out,
    sample_scene,
    vocabulary,
)


def test_every_prompt_reads_back_as_its_scene_in_known_words() -> None:
    rng = np.random.default_rng(1)
    for number in range(200):
        scene = sample_scene(rng, two=0.5, held_out=bool(number % 2))
        assert parse_prompt(scene.prompt()) == scene
        assert set(scene.prompt().split()) <= set(vocabulary())


def test_speed_and_background_may_be_left_out() -> None:
    assert parse_prompt("A red cross moves up.") == Scene((Mover("red", "cross", "up", "slowly"),), "black")


@pytest.mark.parametrize(
    "prompt",
    ["", "a red cross", "a pink cross moves up", "a red cross moves up on a green background", " and ".join(
        ["a red cross moves up"] * 3
    )],
)  # fmt: skip
def test_other_sentences_are_refused_with_an_example(prompt: str) -> None:
    with pytest.raises(ValueError, match="as in"):
        parse_prompt(prompt)


def test_training_never_shows_what_is_held_out() -> None:
    rng = np.random.default_rng(2)
    scenes = [sample_scene(rng, two=0.5) for _ in range(500)]
    assert not any(scene.is_held_out for scene in scenes)
    held_out = [sample_scene(rng, two=0.5, held_out=True) for _ in range(100)]
    assert all(scene.is_held_out for scene in held_out)


def test_every_pair_of_words_occurs_in_training() -> None:
    held_out = set(held_out_combinations())
    assert 0.1 < len(held_out) / (len(COLOURS) * len(SHAPES) * len(DIRECTIONS)) < 0.15
    for words, rest in ((lambda c, s, d: (c, s), DIRECTIONS), (lambda c, s, d: (c, d), SHAPES)):
        seen = {words(c, s, d) for c in COLOURS for s in SHAPES for d in DIRECTIONS if not is_held_out((c, s, d))}
        assert len(seen) == len(COLOURS) * (len(SHAPES) if rest is DIRECTIONS else len(DIRECTIONS))
    shapes = {(s, d) for c in COLOURS for s in SHAPES for d in DIRECTIONS if not is_held_out((c, s, d))}
    assert len(shapes) == len(SHAPES) * len(DIRECTIONS)
