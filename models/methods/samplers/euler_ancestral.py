"""Euler steps with fresh noise after each: what Open-Sora-Plan v1.2 was published with.

Source: Karras et al., arXiv 2206.00364 (sigmas); Crowson's k-diffusion, ancestral step; checked against diffusers'
EulerAncestralDiscreteScheduler (linspace spacing).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from models.methods.samplers.schedule import NoiseSchedule


@dataclass(frozen=True, kw_only=True)
class EulerAncestral:
    """Latents are x0 + sigma eps here (variance exploding). Raises: ValueError: fewer than 1 step."""

    num_steps: int
    schedule: NoiseSchedule = field(default_factory=NoiseSchedule)

    def __post_init__(self) -> None:
        if not 1 <= self.num_steps <= self.schedule.num_train_steps:
            raise ValueError(f"num_steps is {self.num_steps}; need 1 to {self.schedule.num_train_steps}")

    @cached_property
    def _timesteps(self) -> Tensor:
        last = self.schedule.num_train_steps - 1
        return (
            torch.linspace(last, 0, self.num_steps, dtype=torch.float64) if self.num_steps > 1 else torch.tensor([0.0])
        )

    @cached_property
    def _sigmas(self) -> Tensor:
        """At each step, interpolated between training timesteps, and 0 at the end."""
        squared = self.schedule.alphas_cumprod
        train = ((1 - squared) / squared).sqrt()
        low = self._timesteps.floor().long()
        high = (low + 1).clamp(max=len(train) - 1)
        share = self._timesteps - low
        return torch.cat([train[low] * (1 - share) + train[high] * share, torch.zeros(1, dtype=torch.float64)])

    def timestep(self, step: int) -> float:
        """See ``Sampler``."""
        return float(self._timesteps[step])

    def initial(self, noise: Tensor) -> Tensor:
        """See ``Sampler``."""
        return noise * float(self._sigmas[0])

    def scale_input(self, latents: Tensor, step: int) -> Tensor:
        """See ``Sampler``."""
        scale: float = (float(self._sigmas[step]) ** 2 + 1) ** 0.5
        return latents / scale

    def denoised(self, latents: Tensor, output: Tensor, step: int) -> Tensor:
        """See ``Sampler``."""
        return latents - float(self._sigmas[step]) * output

    def step(self, latents: Tensor, output: Tensor, step: int, generator: torch.Generator | None) -> Tensor:
        """See ``Sampler``."""
        now, then = float(self._sigmas[step]), float(self._sigmas[step + 1])
        up: float = (then**2 * (now**2 - then**2) / now**2) ** 0.5
        down: float = (then**2 - up**2) ** 0.5
        moved: Tensor = latents + output * (down - now)
        if up == 0:
            return moved
        noise = torch.randn(latents.shape, generator=generator, dtype=torch.float32)
        return moved + noise.to(latents) * up
