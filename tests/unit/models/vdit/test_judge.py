"""The committed judge names what rendered clips show, and tells words apart."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from models.identity import CHECKPOINTS
from models.training.vdit.clips import SHORT_CLIP, Clip, render
from models.training.vdit.judge import COMBINATIONS, Judge, JudgeNet, Logits, looked_at, targets
from models.training.vdit.scenes import Mover, Scene, sample_scene


@cache
def _judge() -> Judge:
    return Judge.load(CHECKPOINTS / "vdit-nano" / "judge")


def _clip(scene: Scene, seed: int) -> Clip:
    return render(scene, SHORT_CLIP, np.random.default_rng(seed))


def test_most_rendered_clips_are_named_in_all_words() -> None:
    rng = np.random.default_rng(5)
    scenes = [sample_scene(rng, two=0.0, held_out=bool(number % 2)) for number in range(40)]
    verdicts = _judge().verdicts([_clip(scene, number) for number, scene in enumerate(scenes)], scenes)
    assert sum(one.is_right for one in verdicts) >= 34


def test_clip_of_another_scene_is_wrong_in_just_the_words_that_differ() -> None:
    shown = Scene((Mover("red", "circle", "left", "fast"),), "black")
    asked = Scene((Mover("blue", "circle", "right", "fast"),), "black")
    verdict = _judge().verdicts([_clip(shown, 1)], [asked])[0]
    assert not verdict.is_right
    assert (verdict.colour, verdict.shape, verdict.direction) == (0.0, 1.0, 0.0)


def test_nothing_in_the_picture_is_not_right() -> None:
    empty = np.full((SHORT_CLIP, 64, 64, 3), 16, np.uint8)
    verdict = _judge().verdicts([empty], [Scene((Mover("red", "circle", "left"),))])[0]
    assert not verdict.is_right


def test_long_clip_is_judged_by_its_beginning_and_a_short_one_is_refused() -> None:
    scene = Scene((Mover("red", "circle", "left"),))
    long = render(scene, 45, np.random.default_rng(2))
    assert torch.equal(looked_at(long), looked_at(long[:SHORT_CLIP]))
    with pytest.raises(ValueError, match="5 frames; the judge looks at 29"):
        _judge().logits([long[:5]])


def test_targets_of_two_objects_keep_each_with_its_own_words() -> None:
    scene = Scene((Mover("red", "circle", "left"), Mover("green", "cross", "up")))
    chosen = {COMBINATIONS[int(index)] for index in targets(scene).nonzero()}
    assert chosen == {("red", "circle", "left"), ("green", "cross", "up")}


def test_saved_judge_answers_as_before_within_half_precision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    judge = Judge(JudgeNet((8, 8, 8, 8)))
    judge.save(tmp_path)
    clip = _clip(Scene((Mover("red", "circle", "left"),)), 3)
    before, after = judge.logits([clip]), Judge.load(tmp_path).logits([clip])
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, atol=0.02, rtol=0.02)
    assert isinstance(after, Logits)
