"""Attacks move pictures, within their bounds, and go on where they were interrupted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loadtest.adversarial.attack import Attack
from loadtest.adversarial.blackbox import Score, ascent
from loadtest.adversarial.perturbation import EPS, Additive, Patch, as_pixels, quantised
from loadtest.adversarial.recipes import RECIPES
from loadtest.adversarial.state import State
from loadtest.adversarial.victim import Answer, Pictures, Victim
from tests.support.chat_models import TILE
from tests.support.victims import make_pictures, prompts_of

CAP = 24
GRADIENTS = [name for name, recipe in RECIPES.items() if recipe.make]
BLACK_BOXES = [name for name, recipe in RECIPES.items() if recipe.score]


def make(victim: Victim, name: str, count: int = 2, **changes: Any) -> Attack:
    recipe = RECIPES[name]
    if name == "universal-patch":
        recipe = replace(recipe, space=Patch(TILE // 4))
    return Attack(
        victim=victim,
        recipe=recipe,
        clean=make_pictures(count),
        prompts=prompts_of(victim, count),
        **{"seed": 7, "max_tokens": CAP, "every": 2, **changes},
    )


def run(attack: Attack, iterations: int, state: State | None = None) -> State:
    state = state or attack.begin()
    while attack.advance(state, iterations):
        pass
    return state


@pytest.mark.parametrize("name", GRADIENTS)
def test_an_attack_lowers_its_loss(victim: Victim, name: str) -> None:
    """On the text that it began with, at the weights that it began with: both change on the way."""
    attack = make(victim, name, count=1, every=1000)
    state = attack.begin()
    objective = attack.recipe.make(victim, state.ordinary)  # type: ignore[misc]
    pixels, space = as_pixels(attack.clean), attack.recipe.space

    def loss(theta: torch.Tensor, weights: list[float]) -> tuple[float, list[float]]:
        forced = [objective.forced(state.ordinary[0])]
        with torch.no_grad():
            (trace,) = victim.trace(space.pixels(pixels, theta), attack.prompts, forced)
            value, weights = objective.loss(trace, weights, 0)
        return float(value), weights

    start = space.project(pixels, state.theta)
    state.theta = start.clone()
    for _ in range(8):
        attack.advance(state, 1000)
    before, after = loss(start, list(state.weights[0]))[0], loss(state.theta, list(state.weights[0]))[0]
    assert after < before
    assert len(state.losses) == 8


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.space == Additive(EPS)])
def test_a_change_stays_within_eight_grey_levels_of_the_file(victim: Victim, name: str) -> None:
    attack = make(victim, name)
    state = run(attack, 4)
    change = np.abs(state.best.astype(int) - attack.clean)
    assert 0 < change.max() <= 8
    assert (state.theta.abs() <= EPS + 1e-6).all()


@pytest.mark.parametrize("name", ["verbose-released", "lingoloop", "universal-patch", "nes-probabilities"])
def test_an_attack_goes_on_to_the_bit_from_a_file(victim: Victim, name: str, tmp_path: Path) -> None:
    attack = make(victim, name, every=3)
    whole = run(attack, 4)
    part = attack.begin()
    for _ in range(2):
        attack.advance(part, 4)
    part.save(tmp_path / "state.npz")
    again = run(attack, 4, State.load(tmp_path / "state.npz"))
    assert torch.equal(whole.theta, again.theta)
    assert torch.equal(whole.momentum, again.momentum)
    assert np.array_equal(whole.best, again.best)
    for field in ("losses", "lengths", "weights", "best_length", "iteration", "num_queries", "last", "ordinary"):
        assert getattr(whole, field) == getattr(again, field), field


def test_a_shared_patch_is_the_same_on_all_pictures_and_leaves_the_rest(victim: Victim) -> None:
    attack = make(victim, "universal-patch", count=3)
    state, side = run(attack, 2), TILE // 4
    corner = state.best[:, -side:, -side:]
    assert (corner == corner[0]).all()
    rest = np.ones((TILE, TILE), bool)
    rest[-side:, -side:] = False
    assert (state.best[:, rest] == attack.clean[:, rest]).all()
    assert (corner != attack.clean[:, -side:, -side:]).mean() > 0.9


@pytest.mark.parametrize("name", ["noise", "random-pictures"])
def test_a_control_is_measured_and_not_optimised(victim: Victim, name: str) -> None:
    attack = make(victim, name)
    state = run(attack, 50)
    assert (state.iteration, state.losses) == (1, [])
    assert len(state.lengths) == 1
    change = np.abs(state.best.astype(int) - attack.clean)
    assert (change.max() == 8) == (name == "noise")
    assert (change > 0).mean() > 0.95


@pytest.mark.parametrize("name", BLACK_BOXES)
def test_a_black_box_takes_no_gradient_and_looks_at_no_weights(
    victim: Victim, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a black box has no gradients")

    monkeypatch.setattr(torch.autograd, "grad", refused)
    monkeypatch.setattr(torch.Tensor, "backward", refused)
    monkeypatch.setattr(Victim, "trace", refused)
    state = run(make(victim, name), 2)
    assert state.iteration >= 1
    assert state.num_queries > 16


def test_lengths_alone_are_all_that_a_black_box_without_probabilities_reads() -> None:
    ends = [math.log(p) for p in (0.1, 0.2, 0.3, 0.9)]
    told = Answer(tokens=[1, 2, 3], is_ended=True, log_p_ends=ends, top_divergences=[1.0] * 4)
    silent = Answer(tokens=[1, 2, 3], is_ended=True)
    assert Score(uses_probabilities=False)(told) == Score(uses_probabilities=False)(silent) == 3.0
    score = Score(uses_probabilities=True, end_weight=10.0, top_weight=2.0, fading=0.5)
    assert score(told) == pytest.approx(3 - 10 * (0.1 / 8 + 0.2 / 4 + 0.3 / 2 + 0.9) - 2.0)


def test_a_black_box_climbs_what_it_is_told() -> None:
    """A server whose answers grow with the brightness of the upper half."""

    def ask(pictures: Pictures, rows: Sequence[int]) -> list[Answer]:
        assert pictures.dtype == np.uint8
        return [Answer(tokens=[0] * round(100 * float(picture[:4].mean()))) for picture in pictures]

    clean, space = as_pixels(np.full((2, 8, 8, 3), 128, np.uint8)), Additive(EPS)
    theta = torch.zeros_like(clean)
    for iteration in range(12):
        estimates, _, asked, answers = ascent(
            ask, Score(uses_probabilities=False), space, clean, theta, [0, 1], seed=iteration * 100
        )
        theta = space.project(clean, theta + 2 / 255 * estimates.sign())
    assert asked.shape[:2] == (2, len(answers[0]))
    bright = quantised(space.pixels(clean, theta)).astype(int) - 128
    assert bright[:, :4].mean() > 2
    assert abs(bright[:, 4:].mean()) < 2


def test_a_picture_at_the_cap_is_left_alone(victim: Victim) -> None:
    attack = make(victim, "delayed-eos")
    state = attack.begin()
    state.best_length = [float(CAP), -1.0]
    before = state.theta.clone()
    assert attack.advance(state, 4)
    assert torch.equal(state.theta[0], before[0])
    assert not torch.equal(state.theta[1], before[1])
    assert state.losses[0][0] is None
    state.best_length = [float(CAP)] * 2
    assert not attack.advance(state, 4)
