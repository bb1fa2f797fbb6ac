"""Scalable positional embeddings: a grid of any shape from two learnt end-points per axis."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ScalablePositionEmbedding(nn.Module):
    """Factorised row and column embeddings, interpolated on the sphere (TextHawk, arXiv 2404.09204, section 3.2).

    Each axis has a start and an end vector, normalised per head and scaled by a learnt factor that starts at the square
    root of the head's width. Position t in [0, 1] lies on the great circle between them.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} is not divisible by {num_heads} heads")
        head_width = width // num_heads
        self.ends = nn.Parameter(torch.empty(2, 2, num_heads, head_width))
        """(axis, start or end, head, head width)."""
        self.scale = nn.Parameter(torch.empty(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random directions; unit variance per element."""
        nn.init.normal_(self.ends)
        nn.init.constant_(self.scale, self.ends.shape[-1] ** 0.5)

    def forward(self, rows: int, columns: int) -> Tensor:
        """Embeddings of a grid. Returns (rows, columns, width)."""
        row = self._axis(0, rows)[:, None]
        column = self._axis(1, columns)[None, :]
        return row + column

    def _axis(self, axis: int, count: int) -> Tensor:
        # In float32 whatever the model's dtype: arccos of nearly parallel vectors has no digits to lose.
        start, end = nn.functional.normalize(self.ends[axis].float(), dim=-1)
        steps = torch.linspace(0.0, 1.0, count, device=start.device)[:, None, None]
        points = slerp(start, end, steps) * self.scale[axis].float()
        return points.flatten(1).to(self.ends.dtype)


def slerp(start: Tensor, end: Tensor, t: Tensor) -> Tensor:
    """Spherical interpolation between unit vectors (..., d) at ``t``, which broadcasts against them."""
    cosine = (start * end).sum(-1, keepdim=True).clamp(-1 + 1e-6, 1 - 1e-6)
    angle = torch.acos(cosine)
    return (torch.sin((1 - t) * angle) * start + torch.sin(t * angle) * end) / torch.sin(angle)
