"""Ulysses: between all-to-alls, each rank has some of the heads of all tokens.

Source: Jacobs et al., DeepSpeed Ulysses, arXiv:2309.14509, Sec. 3.

Any kind of attention whose heads do not look at each other runs inside unchanged: it sees (B, L, N/P, D).

Legend: B batch, L tokens, N heads, D head dim, P ranks of the group, l tokens of this rank (about L/P).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from models.parallel.collectives import Pending, all_to_all
from models.parallel.degrees import check_heads
from models.parallel.groups import Group
from models.parallel.layout import lengths_of

if TYPE_CHECKING:
    from models.methods.attention.base import SelfAttention


class UlyssesAttention:
    """``inner`` on N/P heads of all tokens, called with and returning shards.

    ``lengths`` are the tokens of each rank; without them, the ranks exchange their lengths in every call.
    """

    def __init__(self, inner: SelfAttention, group: Group, *, lengths: Sequence[int] | None = None) -> None:
        if lengths is not None and len(lengths) != group.size:
            raise ValueError(f"{len(lengths)} lengths were given for a ulysses group of {group.size} ranks")
        self.inner = inner
        self.group = group
        self.lengths = None if lengths is None else tuple(lengths)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, layer: int) -> Tensor:
        """(B, L/P, N, D) each -> (B, L/P, N, D)."""
        lengths = lengths_of(q, self.group) if self.lengths is None else self.lengths
        pending = [self._scatter_heads(tensor, lengths) for tensor in (q, k, v)]
        q, k, v = (arrived().transpose(0, 1) for arrived in pending)  # (B, L, N/P, D)
        return self._gather_heads(self.inner(q, k, v, layer=layer), lengths)

    def _scatter_heads(self, x: Tensor, lengths: Sequence[int]) -> Pending:
        """(B, l, N, D) -> (L, B, N/P, D), still on its way."""
        size, length = self.group.size, x.shape[1]
        check_heads(x.shape[2], size)
        if length != lengths[self.group.rank]:
            raise ValueError(f"rank {self.group.rank} has {length} tokens where {lengths[self.group.rank]} were agreed")
        pieces = (
            x.view(*x.shape[:2], size, x.shape[2] // size, x.shape[3]).permute(2, 1, 0, 3, 4).flatten(0, 1)
        )  # (P * l, B, N/P, D)
        return all_to_all(pieces, [length] * size, lengths, self.group)

    def _gather_heads(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        """(B, L, N/P, D) -> (B, l, N, D)."""
        size, length = self.group.size, lengths[self.group.rank]
        arrived = all_to_all(x.transpose(0, 1), lengths, [length] * size, self.group)()  # (P * l, B, N/P, D)
        return arrived.view(size, length, *arrived.shape[1:]).permute(2, 1, 0, 3, 4).flatten(2, 3)
