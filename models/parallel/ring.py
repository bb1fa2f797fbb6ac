"""Ring attention: queries stay, keys and values go round, results are merged by their LSE.

Source: Liu et al., Ring Attention with Blockwise Transformers, arXiv:2310.01889, Sec. 3.

Each block travels while the one before is computed with. Dense attention and tile masks run here, because what a query
needs of a block depends on nothing but their positions. Kinds that look at all keys to choose (AdaSpa) or that keep
keys of their own (region-adaptive sampling) need Ulysses, where a rank has whole heads.

Legend: B batch, L tokens, N heads, D head dim, R ranks of the ring, l tokens of this rank (about L/R).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Protocol

import torch
from torch import Tensor

from models.methods.attention.partial import Merge, attention_with_lse
from models.parallel.collectives import Pending, rotate
from models.parallel.groups import Group
from models.parallel.layout import lengths_of


class BlockKind(Protocol):
    """What attends to what, between a run of queries and a run of keys."""

    def add(self, merge: Merge, q: Tensor, k: Tensor, v: Tensor, queries: slice, keys: slice, layer: int) -> None:
        """Add to ``merge`` the attention of the tokens ``queries``, given as (B, l, N, D), over the tokens ``keys``."""


class DenseBlocks:
    """Everything attends to everything."""

    def add(self, merge: Merge, q: Tensor, k: Tensor, v: Tensor, queries: slice, keys: slice, layer: int) -> None:
        """One call over the whole block."""
        merge.add(*attention_with_lse(q, k, v))


class RingAttention:
    """Attention over shards: (B, L/R, N, D) each -> (B, L/R, N, D), all heads on every rank.

    ``lengths`` are the tokens of each rank; without them, the ranks exchange their lengths in every call.
    """

    def __init__(self, group: Group, *, lengths: Sequence[int] | None = None, kind: BlockKind | None = None) -> None:
        if lengths is not None and len(lengths) != group.size:
            raise ValueError(f"{len(lengths)} lengths were given for a ring of {group.size} ranks")
        self.group = group
        self.lengths = None if lengths is None else tuple(lengths)
        self.kind: BlockKind = kind or DenseBlocks()

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, layer: int) -> Tensor:
        """Attention of this rank's queries over the keys of all ranks."""
        lengths = lengths_of(q, self.group) if self.lengths is None else self.lengths
        if q.shape[1] != lengths[self.group.rank]:
            raise ValueError(f"rank {self.group.rank} has {q.shape[1]} tokens; {lengths[self.group.rank]} were agreed")
        runs = [slice(start, end) for start, end in pairwise(accumulate(lengths, initial=0))]
        merge = Merge(tuple(q.shape), q.device)
        block = torch.stack((k, v))
        for turn in range(self.group.size):
            owner = (self.group.rank - turn) % self.group.size
            arriving = self._pass_on(block, lengths, turn)
            self.kind.add(merge, q, block[0], block[1], runs[self.group.rank], runs[owner], layer)
            block = arriving() if arriving else block
        return merge.result(q.dtype)

    def _pass_on(self, block: Tensor, lengths: Sequence[int], turn: int) -> Pending | None:
        """Start the exchange of this turn; the last has none."""
        if turn == self.group.size - 1:
            return None
        coming_from = (self.group.rank - turn - 1) % self.group.size
        shape = (2, block.shape[1], lengths[coming_from], *block.shape[3:])
        return rotate(block, block.new_empty(shape), self.group)
