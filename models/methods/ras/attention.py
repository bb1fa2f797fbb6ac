"""Self-attention in which only some tokens ask, and all of them answer.

Legend: B rows of the batch (R for each request, in order), l active tokens, L tokens, N heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.methods.attention.base import SelfAttention
from models.methods.ras.state import RasState


class RasAttention:
    """A ``SelfAttention`` for one step: merges the active tokens into what the requests keep, then attends densely.

    ``active``: (l,) for each request, equally many, or None: all tokens.
    """

    def __init__(self, inner: SelfAttention, states: Sequence[RasState], active: Sequence[Tensor] | None) -> None:
        self._inner = inner
        self._states = states
        self._active: Sequence[Tensor | None] = [None] * len(states) if active is None else active

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, layer: int) -> Tensor:
        """(B, l, N, D) each, to (B, l, N, D)."""
        rows = q.shape[0] // len(self._states)
        merged = [
            state.keep(layer, keys, values, active)
            for state, keys, values, active in zip(
                self._states, torch.split(k, rows), torch.split(v, rows), self._active, strict=True
            )
        ]
        if all(active is None for active in self._active):
            return self._inner(q, k, v, layer=layer)
        keys, values = (parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*merged, strict=True))
        return self._inner(q, keys, values, layer=layer)
