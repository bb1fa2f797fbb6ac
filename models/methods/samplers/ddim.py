"""Deterministic steps (DDIM, eta 0), and the multi-step consistency sampler, which has the same form.

Source: Song et al., arXiv 2010.02502, Eq. (12); Heek et al., arXiv 2403.06807 (multi-step consistency): a student maps
any point of a segment to the segment's beginning: x = model(z_t), z_s = alpha_s x + (sigma_s / sigma_t) (z_t - alpha_t
x).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from models.methods.samplers.schedule import NoiseSchedule


def trailing_timesteps(num_steps: int, num_train_steps: int) -> tuple[int, ...]:
    """Evenly spaced, the last training timestep first (diffusers: "trailing")."""
    return tuple(round(num_train_steps * (num_steps - k) / num_steps) - 1 for k in range(num_steps))


@dataclass(frozen=True, kw_only=True)
class Ddim:
    """Latents are alpha x0 + sigma eps. Raises: ValueError: a number of steps that is out of range."""

    num_steps: int
    schedule: NoiseSchedule = field(default_factory=NoiseSchedule)

    def __post_init__(self) -> None:
        if not 1 <= self.num_steps <= self.schedule.num_train_steps:
            raise ValueError(f"num_steps is {self.num_steps}; need 1 to {self.schedule.num_train_steps}")

    @cached_property
    def _timesteps(self) -> tuple[int, ...]:
        return (*trailing_timesteps(self.num_steps, self.schedule.num_train_steps), -1)

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
        return (latents - sigma * output) / alpha

    def step(self, latents: Tensor, output: Tensor, step: int, generator: torch.Generator | None = None) -> Tensor:
        """See ``Sampler``. Draws nothing."""
        alpha, sigma = self.schedule.alpha_sigma(self._timesteps[step + 1])
        return alpha * self.denoised(latents, output, step) + sigma * output


@dataclass(frozen=True, kw_only=True)
class Consistency(Ddim):
    """``segments`` equal parts of the training timesteps, in each of which the student jumps to the beginning.

    Raises: ValueError: a number of steps that is no multiple of the segments.
    """

    segments: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.segments < 1 or self.num_steps % self.segments:
            raise ValueError(
                f"num_steps is {self.num_steps}; a student of {self.segments} segments takes a multiple of that"
            )
