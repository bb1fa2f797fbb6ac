"""What a diffusion transformer calls in each of its layers.

Legend: B batch, L tokens (= T*H*W of patches, t-major), N heads, D head dim.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class SelfAttention(Protocol):
    """Dense, sparse or spread over ranks; state, if any, belongs to one request."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, layer: int) -> Tensor:
        """Attend. All (B, L, N, D), positions already rotated into ``q`` and ``k``; returns (B, L, N, D).

        ``layer``: index of the calling layer, from 0.
        """
        ...
