"""Attackers who know the guard compute what the guard computes, and go where it does not look."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from loadtest.adversarial.attack import Attack
from loadtest.adversarial.evading import EndUnseen, JustUnder, bounds_of, medians_of, squeeze_score
from loadtest.adversarial.objectives import DelayedEnd
from loadtest.adversarial.perturbation import as_pixels, quantised
from loadtest.adversarial.purifier import Purification, copies, squeezed
from loadtest.adversarial.recipes import BASIC, KNOWING, RECIPES
from loadtest.adversarial.screening import screen_score, soft_features
from loadtest.adversarial.victim import Answer, Trace, Victim
from models.registry import find
from schedulers.guard.calibration import Group, GuardCalibration
from schedulers.guard.text import TextModel
from serving.delivery.stream.wire import EngineImage
from serving.guard import purify
from serving.guard.features import features
from serving.guard.screen import shipped_screen
from tests.support.chat_models import TILE
from tests.support.victims import make_pictures, prompts_of


def make(victim: Victim, name: str, **changes: object) -> Attack:
    fields = {"seed": 7, "max_tokens": 24, "every": 2, **changes}
    return Attack(
        victim=victim,
        recipe=RECIPES[name],
        clean=make_pictures(2),
        prompts=prompts_of(victim, 2),
        **fields,  # type: ignore[arg-type]
    )


def test_recipes_know_the_guard_or_do_not() -> None:
    assert sorted([*BASIC, *KNOWING]) == sorted(RECIPES)
    assert {"noise", "delayed-eos"} <= set(BASIC)
    assert "delayed-eos-purified" in KNOWING


@pytest.mark.parametrize("seed", range(6))
def test_a_purified_copy_is_the_guard_s_to_the_byte(seed: int) -> None:
    (picture,) = make_pictures(1, seed=seed)
    image = EngineImage("key", picture[None], (1, 1))
    theirs = purify.purified(image, random.Random(seed)).tiles[0]
    ours = Purification.drawn(TILE, TILE, random.Random(seed))
    assert np.array_equal(ours.bytes_of(picture), theirs)
    (pixels,) = as_pixels(picture[None])
    assert np.array_equal(quantised(ours(pixels)), theirs)
    assert np.array_equal(quantised(squeezed(pixels)), purify.squeezed(image).tiles[0])


def test_a_copy_s_gradient_is_that_of_the_resize() -> None:
    pixels = as_pixels(make_pictures(2)).requires_grad_()
    one, other = copies(pixels, 2, seed=3)
    assert not torch.equal(one, other)
    (gradient,) = torch.autograd.grad(one[0].sum() + other[1].sum(), pixels)
    assert gradient.mean() == pytest.approx(1.0, abs=0.02), "brightness passes"
    fine = torch.ones_like(pixels)
    fine[:, ::2, ::2] = fine[:, 1::2, 1::2] = -1.0
    (gradient,) = torch.autograd.grad((copies(pixels, 1, seed=3)[0] * fine).sum(), pixels)
    assert gradient.abs().mean() < 0.5, "a chequerboard of pixels does not"


def sure(victim: Victim, end: float, answer: tuple[int, ...]) -> Trace:
    """Logits of 0 but for the end's, at every position."""
    (trace,) = victim.trace(as_pixels(make_pictures(1)), prompts_of(victim, 1), [list(answer)])
    vocabulary = trace.logits(trace.predicting_places).shape[1]

    class Head(torch.nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(hidden), vocabulary).index_fill(1, torch.tensor([victim.end_id]), end)

    return replace(trace, head=Head())


def test_an_end_that_stays_likely_costs_nothing_and_an_unlikely_one_at_most_its_limit(victim: Victim) -> None:
    end = math.log(len(range(sure(victim, 0.0, (5,)).logits(torch.tensor([0])).shape[1])) - 1)  # p = 1/2
    base = DelayedEnd(end_id=victim.end_id)
    for logit, added in ((end, math.log(2) - 0.5), (end - 40.0, 4.0), (end + 9.0, 0.0)):
        trace = sure(victim, logit, (5, 6, 7))
        alone, _ = base.loss(trace, [], 0)
        for weight in (0.0, 2.0):
            loss, _ = EndUnseen(end_id=victim.end_id, weight=weight, medians=(0.0,)).loss(trace, [], 0)
            assert float(loss - alone) == pytest.approx(3 * weight * added, rel=1e-3, abs=1e-3)


def test_medians_are_of_answers_that_get_there() -> None:
    answers = [Answer(log_p_ends=[-3.0, -1.0]), Answer(log_p_ends=[-5.0]), Answer(log_p_ends=[-4.0, -2.0, 0.0])]
    assert medians_of(answers) == (-4.0, -1.5, 0.0)


def test_an_answer_just_under_its_goal_is_made_to_end_there(victim: Victim) -> None:
    objective = JustUnder(base=DelayedEnd(end_id=victim.end_id), goal=3, end_id=victim.end_id)
    assert objective.forced(Answer(tokens=[5, 6], is_ended=True)) == [5, 6, victim.end_id]
    assert objective.forced(Answer(tokens=[5, 6, 7, 8, 9])) == [5, 6, 7, victim.end_id]
    short, long = sure(victim, 2.0, (5, 6, victim.end_id)), sure(victim, 2.0, (5, 6, 7, victim.end_id))
    base, _ = objective.base.loss(short, [], 0)
    assert float(objective.loss(short, [], 0)[0]) == pytest.approx(float(base))
    likely, unlikely = (float(objective.loss(sure(victim, end, long.answer), [], 0)[0]) for end in (2.0, -9.0))
    of_end = -float(long.logits(long.predicting_places[-1:]).log_softmax(-1)[0, victim.end_id])
    assert likely == pytest.approx(float(base) + of_end, rel=1e-5)
    assert unlikely > 9.0


def test_nothing_over_the_goal_is_kept(victim: Victim) -> None:
    attack = make(victim, "delayed-eos", goals=[3, 4])
    state = attack.begin()
    for _ in range(4):
        attack.advance(state, 4)
    assert [length <= goal for length, goal in zip(state.best_length, (3, 4), strict=True)] == [True, True]
    assert "goals [3, 4]" in state.label


def test_a_screen_s_score_is_the_guard_s_and_falls_along_its_gradient(victim: Victim) -> None:
    noise = np.random.default_rng(0).integers(-8, 9, (2, TILE, TILE, 3))
    pictures = (make_pictures(2) + noise).clip(0, 255).astype(np.uint8)
    pixels, screen = as_pixels(pictures).requires_grad_(), shipped_screen()
    scores = screen_score(victim, pixels)
    assert scores.tolist() == pytest.approx([screen.score(picture) for picture in pictures], rel=1e-3, abs=1e-2)
    (gradient,) = torch.autograd.grad(scores.sum(), pixels)
    moved = quantised(pixels - 2 / 255 * gradient.sign())
    assert sum(map(screen.score, moved)) < sum(scores.tolist())


def test_smooth_features_are_near_the_screen_s() -> None:
    (picture,) = make_pictures(1)
    hard, soft = features(picture), soft_features(as_pixels(picture[None])[0]).numpy()
    close = np.abs(hard - soft)[:-1] < 0.1
    assert close.mean() > 0.8


def test_what_is_avoided_falls(victim: Victim) -> None:
    pixels = as_pixels(make_pictures(2))
    before = squeeze_score(victim, pixels)
    assert (before > 0).all()
    attack = make(victim, "delayed-eos-squeeze-3")
    ignoring = make(victim, "delayed-eos")
    found = []
    for one in (attack, ignoring):
        state = one.begin()
        for _ in range(8):
            one.advance(state, 100)
        found.append(float(squeeze_score(victim, one.recipe.space.pixels(pixels, state.theta)).sum()))
    assert found[0] < found[1]


def test_lengths_of_an_attack_on_the_purifier_are_means_over_copies(victim: Victim) -> None:
    attack = make(victim, "delayed-eos-purified", every=1)
    state = attack.begin()
    asked = state.num_queries
    assert attack.advance(state, 1)
    assert state.num_queries - asked == 3 * 2
    assert all(3 * length == pytest.approx(round(3 * length)) for length in state.lengths[0][1])


def test_a_bound_needs_a_calibration(victim: Victim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    family, variant = find("texthawk2-nano")
    monkeypatch.setattr("loadtest.adversarial.evading.find", lambda _: (family, replace(variant, weights=tmp_path)))
    with pytest.raises(ValueError, match="vireo guard calibrate"):
        bounds_of("texthawk2-nano", ["Read it."], 512)
    residuals = tuple(sorted(0.01 * number for number in range(200)))
    calibration = GuardCalibration(
        model="texthawk2-nano",
        checkpoint_sha256="0" * 64,
        num_benign=200,
        text=TextModel(intercept=math.log(11.0), weights=(0.0,) * 64),
        groups={"all": Group(num=200, p95_tokens=40, residuals=residuals)},
    )
    (tmp_path / "guard.json").write_text(json.dumps(calibration.to_plain()))
    (bound,) = bounds_of("texthawk2-nano", ["Read it."], 512)
    assert 11 * math.exp(1.97) - 2 < bound < 11 * math.exp(1.99)
    assert bounds_of("texthawk2-nano", ["Read it."] * 2, 20) == [20, 20]
