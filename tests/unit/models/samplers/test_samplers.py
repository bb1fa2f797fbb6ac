"""Samplers as frozen values: exact on a model that knows the answer, resumable at any step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.methods.samplers.base import Sampler, step_generator
from models.methods.samplers.ddim import Ddim, trailing_timesteps
from models.methods.samplers.euler_ancestral import EulerAncestral
from models.methods.samplers.make import NAMES, make_sampler
from models.methods.samplers.schedule import NoiseSchedule

SHAPE = (2, 4, 3, 4, 4)


def made_up(latents: Tensor, timestep: float) -> Tensor:
    """Any model: depends on latents and timestep."""
    return torch.tanh(latents * (0.5 + timestep / 1000))


def run(sampler: Sampler, latents: Tensor, first: int = 0, last: int | None = None) -> Tensor:
    for step in range(first, sampler.num_steps if last is None else last):
        output = made_up(sampler.scale_input(latents, step), sampler.timestep(step))
        latents = sampler.step(latents, output, step, step_generator(7, step))
    return latents


def noise() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_steps", [4, 20])
def test_model_that_knows_the_clean_latents_gives_them_back(name: str, num_steps: int) -> None:
    sampler, clean = make_sampler(name, num_steps), torch.full(SHAPE, 0.7)
    latents = sampler.initial(noise())
    for step in range(num_steps):
        # The noise that is consistent with ``clean``, found by what the sampler itself takes for clean.
        at_zero, at_one = (sampler.denoised(latents, torch.full(SHAPE, value), step) for value in (0.0, 1.0))
        exact = (clean - at_zero) / (at_one - at_zero)
        assert torch.allclose(sampler.denoised(latents, exact, step), clean, atol=1e-3)
        latents = sampler.step(latents, exact, step, step_generator(1, step))
    assert torch.allclose(latents, clean, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_run_that_is_taken_up_at_any_step_ends_the_same(name: str) -> None:
    sampler = make_sampler(name, 8)
    whole = run(sampler, sampler.initial(noise()))
    for pause in (1, 5, 7):
        half = run(sampler, sampler.initial(noise()), last=pause)
        assert torch.equal(run(make_sampler(name, 8), half, first=pause), whole)


def test_noise_of_a_step_follows_from_seed_and_step_alone() -> None:
    drawn = {
        (seed, step): torch.randn(4, generator=step_generator(seed, step)).tolist()
        for seed in (0, 1)
        for step in (-1, 0, 1)
    }
    assert len({tuple(values) for values in drawn.values()}) == 6
    assert torch.randn(4, generator=step_generator(1, 0)).tolist() == drawn[1, 0]


def test_euler_ancestral_adds_noise_in_every_step_but_the_last() -> None:
    sampler, latents = EulerAncestral(num_steps=5), noise()
    for step in range(5):
        one, other = (sampler.step(latents, latents * 0, step, step_generator(seed, step)) for seed in (1, 2))
        assert torch.equal(one, other) == (step == 4)


def test_ddim_timesteps_begin_at_pure_noise_and_are_even() -> None:
    assert trailing_timesteps(4, 1000) == (999, 749, 499, 249)
    assert [Ddim(num_steps=4).timestep(step) for step in range(4)] == [999.0, 749.0, 499.0, 249.0]


def test_consistency_student_jumps_to_the_beginning_of_its_segment() -> None:
    """z_s = alpha_s x + (sigma_s / sigma_t) (z_t - alpha_t x), as published."""
    sampler, schedule = make_sampler("consistency", 4, segments=4), NoiseSchedule()
    latents, output = noise(), noise().flip(0)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(749), schedule.alpha_sigma(499)
    clean = (latents - sigma_t * output) / alpha_t
    expected = alpha_s * clean + sigma_s / sigma_t * (latents - alpha_t * clean)
    assert torch.allclose(sampler.step(latents, output, 1, None), expected, atol=1e-4)


@pytest.mark.parametrize(("num_steps", "segments"), [(3, 4), (6, 4), (0, 4), (1001, 1)])
def test_steps_that_a_student_was_not_made_for_are_refused(num_steps: int, segments: int) -> None:
    with pytest.raises(ValueError, match="num_steps is"):
        make_sampler("consistency", num_steps, segments=segments)


def test_unknown_sampler_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'dpm'; choose one of euler_ancestral, ddim, consistency"):
        make_sampler("dpm", 10)


def test_adding_noise_and_predicting_the_clean_latents_are_inverse() -> None:
    schedule, clean, eps = NoiseSchedule(), noise(), noise().flip(1)
    timesteps = torch.tensor([10, 700])
    noisy = schedule.add_noise(clean, eps, timesteps)
    assert torch.allclose(schedule.predict_x0(noisy, eps, timesteps), clean, atol=1e-4)
    alpha, sigma = schedule.alpha_sigma(700)
    assert alpha**2 + sigma**2 == pytest.approx(1.0)


def test_betas_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="betas"):
        NoiseSchedule(beta_start=0.1, beta_end=0.01)
