"""Ulysses times ring, for more ranks than heads allow or for ranks in several machines.

Source: Fang and Zhao, USP, arXiv:2405.07719, Sec. 4. Ranks that are neighbours exchange heads (Ulysses), so that each
has N/U heads of the tokens of its U neighbours; those go round the ring of R.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from models.parallel.groups import Group
from models.parallel.ring import RingAttention
from models.parallel.ulysses import UlyssesAttention


class UspAttention:
    """(B, L/(U R), N, D) -> all-to-all -> (B, L/R, N/U, D) -> ring -> (B, L/R, N/U, D) -> all-to-all -> the shard."""

    def __init__(self, ulysses: Group, ring: RingAttention, *, lengths: Sequence[int] | None = None) -> None:
        self._attention = UlyssesAttention(ring, ulysses, lengths=lengths)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, layer: int) -> Tensor:
        """``lengths`` are those of the ranks of the ulysses group."""
        return self._attention(q, k, v, layer=layer)
