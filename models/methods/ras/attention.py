"""Self-attention in which only some tokens ask, and all of them answer.

Legend: B rows of the batch (R for each request, in order), l active tokens, L tokens, S text tokens (0 where text is
looked at by cross-attention), N heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.methods.attention.base import SelfAttention
from models.methods.ras.cache import TokenCache


class RasAttention:
    """A ``SelfAttention`` for one step: merges the active tokens into what the requests keep, then attends densely.

    ``active``: (l,) for each request, equally many, or None: all tokens. ``num_text_tokens``: tokens that stand at the
    end, which are always run and of which nothing is kept.
    """

    def __init__(
        self,
        inner: SelfAttention,
        caches: Sequence[TokenCache],
        active: Sequence[Tensor] | None,
        num_text_tokens: int = 0,
    ) -> None:
        self._inner = inner
        self._caches = caches
        self._active: Sequence[Tensor | None] = [None] * len(caches) if active is None else active
        self._num_text = num_text_tokens

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, layer: int) -> Tensor:
        """(B, l + S, N, D) each, to (B, l + S, N, D)."""
        rows, tokens = q.shape[0] // len(self._caches), q.shape[1] - self._num_text
        merged = [
            cache.keep(layer, keys, values, active)
            for cache, keys, values, active in zip(
                self._caches, torch.split(k[:, :tokens], rows), torch.split(v[:, :tokens], rows), self._active,
                strict=True,
            )
        ]  # fmt: skip
        if all(active is None for active in self._active):
            return self._inner(q, k, v, layer=layer)
        keys, values = (parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*merged, strict=True))
        if self._num_text:
            keys, values = (torch.cat([x, own[:, tokens:]], 1) for x, own in ((keys, k), (values, v)))
        return self._inner(q, keys, values, layer=layer)
