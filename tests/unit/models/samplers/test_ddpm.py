"""Ancestral steps with a predicted variance: against Bayes' rule written out, and against the published spacing."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from models.methods.samplers.base import step_generator
from models.methods.samplers.ddpm import Ddpm, spaced_timesteps
from models.methods.samplers.schedule import NoiseSchedule

SHAPE = (2, 4, 6, 6)


@pytest.mark.parametrize("num_steps", [2, 5, 250, 999, 1000])
def test_timesteps_reach_from_the_last_to_the_first(num_steps: int) -> None:
    found = spaced_timesteps(num_steps, 1000)
    assert len(set(found)) == num_steps
    assert (found[0], found[-1]) == (999, 0)
    gaps = {now - then for now, then in pairwise(found)}
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("curve", ["linear", "cosine"])
def test_step_is_the_posterior_of_the_forward_process(curve: str) -> None:
    sampler = Ddpm(num_steps=7, schedule=NoiseSchedule(curve=curve))  # type: ignore[arg-type]
    squared = sampler.schedule.alphas_cumprod
    random = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(SHAPE, generator=random, dtype=torch.float64) for _ in range(2))
    place = torch.rand(SHAPE, generator=random, dtype=torch.float64) * 2 - 1
    for step in range(6):
        now, then = (float(squared[int(sampler.timestep(at))]) for at in (step, step + 1))
        clean = (latents - math.sqrt(1 - now) * noise) / math.sqrt(now)
        alpha = now / then  # q(z_now | z_then) has mean sqrt(alpha) z_then; q(z_then | clean) mean sqrt(then) clean
        precision = alpha / (1 - alpha) + 1 / (1 - then)
        mean = (latents * math.sqrt(alpha) / (1 - alpha) + clean * math.sqrt(then) / (1 - then)) / precision
        low, high = math.log(1 / precision), math.log(1 - alpha)
        deviation = torch.exp(0.5 * (low + (place + 1) / 2 * (high - low)))
        drawn = torch.randn(SHAPE, generator=step_generator(3, step))
        stepped = sampler.step(latents, torch.cat([noise, place], dim=1), step, step_generator(3, step))
        assert torch.allclose(stepped, mean + deviation * drawn, rtol=1e-9, atol=1e-9 * float(mean.abs().max()))


def test_last_step_gives_the_clean_latents_and_draws_nothing() -> None:
    sampler = Ddpm(num_steps=4)
    clean, noise = torch.full(SHAPE, 0.7), torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    alpha, sigma = sampler.schedule.alpha_sigma(0)
    made = sampler.step(alpha * clean + sigma * noise, torch.cat([noise, noise], dim=1), 3, None)
    assert torch.allclose(made, clean, atol=1e-4)


def test_cosine_ends_in_noise_and_its_betas_are_bounded() -> None:
    squared = NoiseSchedule(curve="cosine").alphas_cumprod
    assert squared[0] > 0.9999
    assert 0 < squared[-1] < 1e-7
    assert float((1 - squared[1:] / squared[:-1]).max()) == pytest.approx(0.999)


@pytest.mark.parametrize("num_steps", [0, 1, 1001])
def test_number_of_steps_that_cannot_be_taken_is_refused(num_steps: int) -> None:
    with pytest.raises(ValueError, match="num_steps"):
        Ddpm(num_steps=num_steps)
