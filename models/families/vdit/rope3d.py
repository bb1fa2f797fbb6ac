"""Rotary positions along time, rows and columns: a third of each head for each.

Source: Open-Sora-Plan v1.2.0, opensora/models/diffusion/opensora/rope.py. Differs from it: angles are made from the
positions at hand, in float32, and nothing is cached (its cache forgets the interpolation scale).

Legend: B batch, L tokens, N heads, D head dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

BASE = 10_000.0


def grid_positions(grid: tuple[int, int, int], device: torch.device | str = "cpu") -> Tensor:
    """(t, row, column) of every patch, t-major, int64 (L, 3)."""
    return torch.cartesian_prod(*(torch.arange(size, device=device) for size in grid)).reshape(-1, 3)


def rotation(positions: Tensor, head_dim: int, scales: tuple[float, float, float]) -> tuple[Tensor, Tensor]:
    """Cosines and sines for positions (..., 3), float32 (..., D). ``scales`` divide the positions."""
    third = head_dim // 3
    inverse = BASE ** (-torch.arange(0, third, 2, device=positions.device, dtype=torch.float32) / third)
    scaled = positions.to(torch.float32) / torch.tensor(scales, device=positions.device)
    angles = scaled[..., :, None] * inverse  # (..., 3, third / 2)
    angles = torch.cat([angles, angles], dim=-1).flatten(-2)  # (..., D)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (B, L, N, D) by cosines and sines of (L, D) or (B, L, D), each third by itself."""
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    thirds = x.unflatten(-1, (3, 2, -1))  # type: ignore[no-untyped-call]
    turned = torch.stack([-thirds[..., 1, :], thirds[..., 0, :]], dim=-2).flatten(-3)
    return (x * cos + turned * sin).to(x.dtype)
