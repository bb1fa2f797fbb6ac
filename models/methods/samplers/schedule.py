"""How much noise there is at each training timestep.

Source: Open-Sora-Plan v1.2 trains and samples with the defaults of diffusers' schedulers: 1,000 steps, linear betas
from 1e-4 to 2e-2, epsilon prediction. The cosine is that of Nichol and Dhariwal, arXiv 2102.09672, Eq. (17).

Legend: alpha, sigma with z = alpha x0 + sigma eps and alpha^2 + sigma^2 = 1 (variance preserving).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

_MAX_BETA = 0.999
"""Of the cosine, which would end with nothing but noise."""


@dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
    """Linear betas, or those of a cosine, for which their ends say nothing.

    Raises: ValueError: no increasing betas between 0 and 1, or fewer than two.
    """

    curve: Literal["linear", "cosine"] = "linear"

    num_train_steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 2e-2

    def __post_init__(self) -> None:
        if not 0 < self.beta_start < self.beta_end < 1 or self.num_train_steps < 2:
            raise ValueError(
                f"betas {self.beta_start} to {self.beta_end} in {self.num_train_steps} steps; need 0<a<b<1"
            )

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """alpha^2 at each timestep, float64 (num_train_steps,)."""
        return torch.cumprod(1.0 - self._betas, dim=0)

    @property
    def _betas(self) -> Tensor:
        if self.curve == "linear":
            return torch.linspace(self.beta_start, self.beta_end, self.num_train_steps, dtype=torch.float64)
        share = torch.arange(self.num_train_steps + 1, dtype=torch.float64) / self.num_train_steps
        alphas = ((share + 0.008) / 1.008 * (math.pi / 2)).cos() ** 2
        return (1.0 - alphas[1:] / alphas[:-1]).clamp(max=_MAX_BETA)

    def alpha_sigma(self, timestep: int) -> tuple[float, float]:
        """alpha and sigma; (1, 0) at timestep -1, where nothing is noise."""
        if timestep < 0:
            return 1.0, 0.0
        squared = float(self.alphas_cumprod[timestep])
        return squared**0.5, (1.0 - squared) ** 0.5

    def levels(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma for integer timesteps (B,), shaped to broadcast over ``like`` (B, ...)."""
        squared = self.alphas_cumprod.to(like.device)[timesteps].reshape(-1, *[1] * (like.ndim - 1))
        return squared.sqrt().to(like.dtype), (1.0 - squared).sqrt().to(like.dtype)

    def add_noise(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """z at integer timesteps (B,)."""
        alpha, sigma = self.levels(timesteps, x0)
        return alpha * x0 + sigma * noise

    def predict_x0(self, latents: Tensor, eps: Tensor, timesteps: Tensor) -> Tensor:
        """x0 from z and its noise, at integer timesteps (B,)."""
        alpha, sigma = self.levels(timesteps, latents)
        return (latents - sigma * eps) / alpha
