"""Block-sparse attention by gathering: dense attention over the chosen keys, put side by side. Exact, no mask.

Blocks of queries with equally many chosen keys share a call where those are few. The copy costs 1/b of the
arithmetic for blocks of b tokens, whatever the sparsity; a mask would save nothing. Best with blocks of 128 and more on
a CPU, where dense attention with few query rows per call is slower.

Legend: B batch, L tokens, N heads, D head dim, H = B * N, R blocks of queries, C blocks of keys, b tokens of a block,
K chosen blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from models.methods.attention.block_layout import BlockLayout

_GATHERED_BYTES = 1 << 20  # of keys in one call: they and the values stay near the core
_ROW_BYTES = 32 << 10  # a row with more keys has a call of its own: finding queries for many costs more than a call


def gathered_attention(q: Tensor, k: Tensor, v: Tensor, blocks: BlockLayout) -> Tensor:
    """(B, L, N, D) each -> (B, L, N, D)."""
    batch, num_tokens, num_heads, dim = q.shape
    if bool(blocks.mask.all()):
        return _sdpa(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    queries, keys, values = (_in_blocks(x, blocks.block_tokens) for x in (q, k, v))
    out = torch.zeros_like(queries) if bool((blocks.counts == 0).any()) else torch.empty_like(queries)
    num_blocks = blocks.mask.shape[2]
    padding = num_blocks * blocks.block_tokens - num_tokens
    work = _Work(queries=queries, keys=keys, values=values, out=out, num_blocks=num_blocks, padding=padding)
    for rows, columns in _groups(blocks.mask):
        work.attend(rows, columns)
    return out.view(batch, num_heads, -1, dim)[:, :, :num_tokens].transpose(1, 2)


@dataclass(frozen=True, kw_only=True)
class _Work:
    """All tensors are (H * R, b, D), each block in one piece; ``padding`` tokens of the last of a head are none."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    out: Tensor
    num_blocks: int
    padding: int

    def attend(self, rows: Tensor, columns: Tensor) -> None:
        """Blocks of queries ``rows`` (n,), numbers among H * R, over their ``columns`` (n, K), in ascending order."""
        padding = self.padding if int(columns[0, -1]) == self.num_blocks - 1 else 0
        if columns.shape[1] == self.num_blocks:
            self._attend_all(rows, padding)
            return
        chosen = (rows // self.num_blocks * self.num_blocks).unsqueeze(1) + columns
        row_bytes = columns.shape[1] * self.keys[0].numel() * self.keys.element_size()
        step = 1 if row_bytes >= _ROW_BYTES else max(1, _GATHERED_BYTES // row_bytes)
        for some, into in zip(torch.split(chosen, step), torch.split(rows, step), strict=True):
            keys, values = (self._side_by_side(x, some, padding) for x in (self.keys, self.values))
            result = _sdpa(self.queries.index_select(0, into).unsqueeze(1), keys, values)
            self.out.index_copy_(0, into, result.squeeze(1))

    @staticmethod
    def _side_by_side(x: Tensor, chosen: Tensor, padding: int) -> Tensor:
        """(n, 1, K * b - padding, D)."""
        gathered = x.index_select(0, chosen.flatten()).view(len(chosen), 1, -1, x.shape[-1])
        return gathered[:, :, : gathered.shape[2] - padding] if padding else gathered

    def _attend_all(self, rows: Tensor, padding: int) -> None:
        """Rows that see everything: one call per head, whose keys are in order already."""
        heads = rows // self.num_blocks
        for head in sorted(set(heads.tolist())):
            mine = rows[heads == head]
            every = slice(head * self.num_blocks, (head + 1) * self.num_blocks)
            keys, values = (x[every].flatten(0, 1) for x in (self.keys, self.values))
            end = len(keys) - padding
            queries = self.queries.index_select(0, mine)
            result = _sdpa(queries.flatten(0, 1)[None, None], keys[None, None, :end], values[None, None, :end])
            self.out.index_copy_(0, mine, result.view_as(queries))


def _in_blocks(x: Tensor, block_tokens: int) -> Tensor:
    """(B, L, N, D) -> (H * R, b, D), a copy, the last block of each head filled up with zeros."""
    x = x.transpose(1, 2)
    x = F.pad(x, (0, 0, 0, -x.shape[2] % block_tokens))
    return x.contiguous().view(-1, block_tokens, x.shape[3])


def _groups(mask: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks of queries that fit in one call: numbers among H * R (n,) and their columns (n, K), ascending.

    Rows that see the last block are apart from those that do not: theirs are shorter where that block is partial.
    """
    mask = mask.flatten(0, 2)
    kind = mask.sum(1) * 2 + mask[:, -1]
    for value in sorted(set(kind.tolist())):
        if value > 0:
            rows = (kind == value).nonzero().flatten()
            yield rows, mask[rows].nonzero()[:, 1].view(len(rows), value // 2)


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)
