"""What an engine needs of a sampler. Latents, model outputs and noise have any one shape."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Sampler(Protocol):
    """A fixed list of timesteps and a rule; no state, so that a request can go on from any step."""

    @property
    def num_steps(self) -> int:
        """Steps from noise to latents."""
        ...

    def timestep(self, step: int) -> float:
        """What the model is told at ``step``, from 0."""
        ...

    def initial(self, noise: Tensor) -> Tensor:
        """Unit noise to what step 0 begins with."""
        ...

    def scale_input(self, latents: Tensor, step: int) -> Tensor:
        """What the model is shown."""
        ...

    def denoised(self, latents: Tensor, output: Tensor, step: int) -> Tensor:
        """The model's estimate of the clean latents. ``output``: its estimate of the noise."""
        ...

    def step(self, latents: Tensor, output: Tensor, step: int, generator: torch.Generator | None) -> Tensor:
        """Latents for the next step; after the last one, the clean ones. ``generator`` draws this step's noise."""
        ...


def step_generator(seed: int, step: int) -> torch.Generator:
    """The generator of one step's noise: of seed and step alone, so that a later attempt draws the same."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step * 7_919 + 1) % (1 << 63))
