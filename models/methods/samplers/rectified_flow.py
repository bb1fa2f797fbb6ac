"""Euler steps along a straight flow from noise at time 1 to latents at time 0.

Source: Liu et al., arXiv 2209.03003. Times are told to the model as they are, from 1 down to one step above 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RectifiedFlow:
    """Latents are (1 - t) x0 + t noise; outputs are the velocity, noise - x0, in their first channels.

    Raises: ValueError: fewer than 1 step.
    """

    num_steps: int

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps is {self.num_steps}; need at least 1")

    def timestep(self, step: int) -> float:
        """See ``Sampler``."""
        return (self.num_steps - step) / self.num_steps

    def initial(self, noise: Tensor) -> Tensor:
        """See ``Sampler``."""
        return noise

    def scale_input(self, latents: Tensor, step: int) -> Tensor:
        """See ``Sampler``."""
        return latents

    def denoised(self, latents: Tensor, output: Tensor, step: int) -> Tensor:
        """See ``Sampler``."""
        return latents - self.timestep(step) * output[:, : latents.shape[1]]

    def step(self, latents: Tensor, output: Tensor, step: int, generator: torch.Generator | None = None) -> Tensor:
        """See ``Sampler``. Draws nothing."""
        return latents - output[:, : latents.shape[1]] / self.num_steps
