"""Parts of a class-conditional diffusion transformer (DiT) that its descendants share, with the published names.

Source: Peebles and Xie, arXiv 2212.09748. Legend: B pictures, N tokens of each, W width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPSILON = 1e-6
_FREQUENCIES = 256


class PatchEmbed(nn.Module):
    """Latents to tokens (B, N, W)."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, latents: Tensor) -> Tensor:  # noqa: D102
        projected: Tensor = self.proj(latents)
        return projected.flatten(2).transpose(1, 2)


class TimeEmbed(nn.Module):
    """Times to (B, W): cosines first, then sines."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp: Any = nn.Sequential(nn.Linear(_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, times: Tensor) -> Tensor:  # noqa: D102
        half = _FREQUENCIES // 2
        steps = torch.arange(half, dtype=torch.float32, device=times.device)
        angles = times[:, None].float() * torch.exp(-math.log(10_000) * steps / half)
        waves = torch.cat([angles.cos(), angles.sin()], dim=1)
        embedded: Tensor = self.mlp(waves.to(self.mlp[0].weight.dtype))
        return embedded


class ClassEmbed(nn.Module):
    """Classes to (B, W)."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes, width)

    def forward(self, classes: Tensor) -> Tensor:  # noqa: D102
        embedded: Tensor = self.embedding_table(classes)
        return embedded


class FinalLayer(nn.Module):
    """Tokens to patches (B, N, patch * patch * channels)."""

    def __init__(self, width: int, patch: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, patch**2 * channels)
        self.adaLN_modulation = modulation(width, 2)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:  # noqa: D102
        shift, scale = self.adaLN_modulation(condition)[:, None].chunk(2, dim=-1)
        patches: Tensor = self.linear(modulated(tokens, shift, scale))
        return patches


def modulation(width: int, count: int) -> Any:
    """The linear layer has number 1 in published names; the SiLU before it is done once, by who calls."""
    return nn.Sequential(nn.Identity(), nn.Linear(width, count * width))


def modulated(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """A layer norm without weights, then scale and shift."""
    return F.layer_norm(tokens, tokens.shape[-1:], eps=EPSILON) * (1 + scale) + shift
