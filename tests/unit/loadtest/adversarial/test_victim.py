"""The differentiable way gives what the served way gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from loadtest.adversarial.perturbation import as_pixels
from loadtest.adversarial.victim import Sampling, Victim, load_victim, top_divergence
from models.families.texthawk2.image_processor import cut_tiles
from models.training.texthawk2.evaluation import generate
from tests.support.chat_models import TILE
from tests.support.victims import make_pictures, prompts_of

SIZES = [(TILE, TILE), (2 * TILE, TILE), (2 * TILE, 3 * TILE)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_logits_of_raw_pixels_are_those_of_the_served_path(victim: Victim, height: int, width: int) -> None:
    pictures, prompts = make_pictures(2, height, width), prompts_of(victim, 2, height, width)
    answers = [[5, 6, 7, 8], [9, 10]]
    traces = victim.trace(as_pixels(pictures), prompts, answers)
    for picture, prompt, answer, trace in zip(pictures, prompts, answers, traces, strict=True):
        tiles, grid = cut_tiles(picture, victim.limits)
        with torch.no_grad():
            served = victim.network(
                input_ids=torch.tensor([[*prompt, *answer]]),
                pixel_values=torch.from_numpy(tiles),
                grids=torch.tensor([tuple(grid)]),
            ).logits[0]
        ours = trace.logits(torch.arange(len(prompt) + len(answer)))
        torch.testing.assert_close(ours, served, atol=2e-4, rtol=1e-4)  # float32, other batch sizes
        assert trace.predicting_places.tolist() == list(range(len(prompt) - 1, len(prompt) + len(answer) - 1))
        assert len(trace.image_places) == 16 * len(tiles)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_every_pixel_has_a_gradient(victim: Victim, height: int, width: int) -> None:
    pixels = as_pixels(make_pictures(1, height, width)).requires_grad_()
    (trace,) = victim.trace(pixels, prompts_of(victim, 1, height, width), [[5, 6]])
    (gradient,) = torch.autograd.grad(trace.logits(trace.predicting_places).square().sum(), pixels)
    assert gradient.isfinite().all()
    assert (gradient != 0).float().mean() > 0.99


def test_the_gradient_is_the_slope(victim: Victim) -> None:
    """Along its own direction, where rounding is smallest."""
    pixels, prompts = as_pixels(make_pictures(1)), prompts_of(victim, 1)

    def value(at: torch.Tensor) -> torch.Tensor:
        (trace,) = victim.trace(at, prompts, [[victim.end_id]])
        return trace.logits(trace.predicting_places)[0].log_softmax(-1)[victim.end_id]

    leaf = pixels.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(leaf), leaf)
    step = 2e-3 * gradient / gradient.norm()
    with torch.no_grad():
        slope = (value(pixels + step) - value(pixels - step)) / 2
    torch.testing.assert_close(slope, (gradient * step).sum(), rtol=0.05, atol=1e-6)


def test_greedy_answers_are_those_of_transformers(victim: Victim) -> None:
    pictures, prompts = make_pictures(3), prompts_of(victim, 3)
    answers = victim.answer(pictures, prompts, max_tokens=12)
    cut = [[cut_tiles(picture, victim.limits)] for picture in pictures]
    made = generate(victim.network, prompts, cut, max_new_tokens=12, eos_token_id=victim.end_id)
    for answer, tokens in zip(answers, made[:, max(map(len, prompts)) :].tolist(), strict=True):
        told = tokens[: tokens.index(victim.end_id)] if victim.end_id in tokens else tokens
        assert answer.tokens == told
        assert answer.is_ended == (victim.end_id in tokens)
        assert len(answer.log_p_ends) == len(answer.top_divergences) == len(told) + answer.is_ended


def test_rows_that_end_leave_the_others_as_they_are(victim: Victim) -> None:
    """The end is a token that some say and others do not."""
    pictures, prompts = make_pictures(6), prompts_of(victim, 6)
    said = [set(answer.tokens) for answer in victim.answer(pictures, prompts, max_tokens=10)]
    ends_some = Victim(victim.network, victim.prompts, victim.weights)
    ends_some.end_id = min(token for token in set().union(*said) if not all(token in one for one in said))
    together = ends_some.answer(pictures, prompts, max_tokens=10)
    assert {answer.is_ended for answer in together} == {True, False}
    for picture, prompt, one in zip(pictures, prompts, together, strict=True):
        (alone,) = ends_some.answer(picture[None], [prompt], max_tokens=10)
        assert (alone.tokens, alone.is_ended) == (one.tokens, one.is_ended)
        np.testing.assert_allclose(alone.log_p_ends, one.log_p_ends, atol=1e-3)


def test_a_draw_is_repeatable_and_stays_in_the_nucleus(victim: Victim) -> None:
    pictures, prompts = make_pictures(2), prompts_of(victim, 2)
    one, same, other = (
        [a.tokens for a in victim.answer(pictures, prompts, max_tokens=8, sampling=Sampling(0.9, seed))]
        for seed in (1, 1, 2)
    )
    assert one == same
    assert one != other
    greedy = [answer.tokens for answer in victim.answer(pictures, prompts, max_tokens=8)]
    narrow = victim.answer(pictures, prompts, max_tokens=8, sampling=Sampling(1e-6, 1))
    assert [answer.tokens for answer in narrow] == greedy


def test_a_picture_that_would_be_resized_is_refused(victim: Victim) -> None:
    with pytest.raises(ValueError, match="would be resized"):
        victim.grid_of(TILE + 1, TILE)


def test_top_divergence_is_nothing_where_nothing_is_preferred() -> None:
    even = torch.full((1, 30), 1 / 30)
    sure = torch.tensor([[0.97] + [0.03 / 29] * 29])
    assert top_divergence(even).item() == pytest.approx(0.0, abs=1e-6)
    assert top_divergence(sure).item() > 1.0


def test_models_of_other_families_are_refused() -> None:
    with pytest.raises(ValueError, match="dyn-perceiver"):
        load_victim("dyn-perceiver-nano")
