"""Self-attention over packed tokens: each sequence to itself.

Legend: L tokens of all sequences, N heads, D head dim, n sequences of a run and l tokens of each.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from models.methods.attention.base import SelfAttention
from models.methods.packing.layout import Packed


class PackedAttention:
    """Runs attend one after another, each as a batch (n, l, N, D) of its own and with the attention that is made for
    its sequences: one kernel call for each length, on any device, and no mask."""

    def __init__(self, layout: Packed, of_runs: Sequence[SelfAttention]) -> None:
        self._layout = layout
        self._of_runs = of_runs

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, layer: int) -> Tensor:
        """See ``SelfAttention``; all (1, L, N, D)."""
        runs = zip(*(self._layout.unpack(one) for one in (q, k, v)), self._of_runs, strict=True)
        return self._layout.pack([attention(*parts, layer=layer) for *parts, attention in runs])
