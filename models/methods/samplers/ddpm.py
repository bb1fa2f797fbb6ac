"""Ancestral steps of a model that also predicts how much noise to add: DDPM on a part of the training timesteps.

Source: Nichol and Dhariwal, arXiv 2102.09672: Eq. (15), the variance between its two bounds, and section 4, the betas
of fewer steps. Checked against the code that DiT and its descendants sample with (OpenAI's ``SpacedDiffusion``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from models.methods.samplers.schedule import NoiseSchedule


def spaced_timesteps(num_steps: int, num_train_steps: int) -> tuple[int, ...]:
    """Evenly spaced from the last training timestep to the first, both of them taken."""
    stride, at, found = (num_train_steps - 1) / max(1, num_steps - 1), 0.0, []
    for _ in range(num_steps):  # added up as OpenAI does: a product rounds differently
        found.append(round(at))
        at += stride
    return tuple(reversed(found))


@dataclass(frozen=True, kw_only=True)
class Ddpm:
    """A ``Sampler`` of latents alpha x0 + sigma eps, (..., C, h, w). The model's output has twice their channels: its
    estimate of the noise, and where the logarithm of the variance lies, from -1 to 1 between its bounds.

    Raises: ValueError: a number of steps that is out of range.
    """

    num_steps: int
    schedule: NoiseSchedule = field(default_factory=NoiseSchedule)

    def __post_init__(self) -> None:
        if not 2 <= self.num_steps <= self.schedule.num_train_steps:
            raise ValueError(f"num_steps is {self.num_steps}; need 2 to {self.schedule.num_train_steps}")

    @cached_property
    def _timesteps(self) -> tuple[int, ...]:
        return (*spaced_timesteps(self.num_steps, self.schedule.num_train_steps), -1)

    def timestep(self, step: int) -> float:
        """See ``Sampler``."""
        return float(self._timesteps[step])

    def initial(self, noise: Tensor) -> Tensor:
        """See ``Sampler``."""
        return noise

    def scale_input(self, latents: Tensor, step: int) -> Tensor:
        """See ``Sampler``."""
        return latents

    def denoised(self, latents: Tensor, output: Tensor, step: int) -> Tensor:
        """See ``Sampler``."""
        alpha, sigma = self.schedule.alpha_sigma(self._timesteps[step])
        return latents / alpha - (sigma / alpha) * output.chunk(2, dim=-3)[0]

    def step(self, latents: Tensor, output: Tensor, step: int, generator: torch.Generator | None) -> Tensor:
        """See ``Sampler``. Nothing is drawn in the last step."""
        now, then = (self._squared_alpha(at) for at in (step, step + 1))
        beta = 1.0 - now / then
        mean = (beta * math.sqrt(then) / (1.0 - now)) * self.denoised(latents, output, step)
        mean = mean + ((1.0 - then) * math.sqrt(1.0 - beta) / (1.0 - now)) * latents
        if step == self.num_steps - 1:
            return mean
        share = (output.chunk(2, dim=-3)[1] + 1) / 2
        log_variance = share * math.log(beta) + (1 - share) * math.log(beta * (1.0 - then) / (1.0 - now))
        noise = torch.randn(latents.shape, generator=generator, dtype=torch.float32)
        return mean + (0.5 * log_variance).exp() * noise.to(latents)

    def _squared_alpha(self, step: int) -> float:
        timestep = self._timesteps[step]
        return 1.0 if timestep < 0 else float(self.schedule.alphas_cumprod[timestep])
