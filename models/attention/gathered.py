"""Block-sparse attention by gathering: dense attention over the chosen keys, put side by side. Exact, no mask.

Blocks of queries with equally many chosen keys share a call as long as their keys are small. The copy costs 1/b of the
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

from models.attention.block_layout import BlockLayout

_GATHERED_BYTES = 1 << 20  # of keys in one call: they and the values stay near the core


def gathered_attention(q: Tensor, k: Tensor, v: Tensor, blocks: BlockLayout) -> Tensor:
    """(B, L, N, D) each -> (B, L, N, D)."""
    num_tokens = q.shape[1]
    if bool(blocks.mask.all()):
        return _sdpa(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    queries, keys, values = (_filled_up(x, blocks.block_tokens) for x in (q, k, v))
    out = torch.zeros_like(queries) if bool((blocks.counts == 0).any()) else torch.empty_like(queries)
    work = _Work(
        queries=_in_blocks(queries, blocks.block_tokens),
        keys=_in_blocks(keys, blocks.block_tokens).contiguous().flatten(0, 2),
        values=_in_blocks(values, blocks.block_tokens).contiguous().flatten(0, 2),
        out=_in_blocks(out, blocks.block_tokens),
        padding=queries.shape[1] - num_tokens,
    )
    for places, columns in _groups(blocks.mask):
        work.attend(places, columns)
    return out[:, :num_tokens]


@dataclass(frozen=True, kw_only=True)
class _Work:
    """``queries`` and ``out`` are views (B, N, R, b, D) of the tensors of the caller's order; ``keys`` and ``values``
    are copies (H * C, b, D), a block in one piece; ``padding`` tokens of the last block are none."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    out: Tensor
    padding: int

    def attend(self, places: Tensor, columns: Tensor) -> None:
        """Blocks of queries ``places`` (n, 3), by (batch, head, row), over their ``columns`` (n, K)."""
        _, num_heads, num_blocks = self.queries.shape[:3]
        sees_last = int(columns[0, -1]) == num_blocks - 1
        padding = self.padding if sees_last else 0
        if columns.shape[1] == num_blocks:
            self._attend_all(places, padding)
            return
        heads = places[:, 0] * num_heads + places[:, 1]
        chosen = heads.unsqueeze(1) * num_blocks + columns
        step = max(1, _GATHERED_BYTES // (columns.shape[1] * self.keys[0].numel() * self.keys.element_size()))
        for some, where in zip(torch.split(chosen, step), torch.split(places, step), strict=True):
            keys, values = (self._side_by_side(x, some, padding) for x in (self.keys, self.values))
            if len(some) == 1:
                batch, head, row = where[0].tolist()
                result = _sdpa(self.queries[batch, head, row][None, None], keys, values)
                self.out[batch, head, row].copy_(result[0, 0])
            else:
                at = where.unbind(1)
                self.out[at] = _sdpa(self.queries[at].unsqueeze(1), keys, values).squeeze(1)

    @staticmethod
    def _side_by_side(x: Tensor, chosen: Tensor, padding: int) -> Tensor:
        """(n, 1, K * b - padding, D)."""
        gathered = x.index_select(0, chosen.flatten()).view(len(chosen), 1, -1, x.shape[-1])
        return gathered[:, :, : gathered.shape[2] - padding] if padding else gathered

    def _attend_all(self, places: Tensor, padding: int) -> None:
        """Rows that see everything: one call per head and nothing copied."""
        _, num_heads, num_blocks = self.queries.shape[:3]
        heads = places[:, 0] * num_heads + places[:, 1]
        for head in sorted(set(heads.tolist())):
            batch, number = divmod(head, num_heads)
            rows = places[heads == head, 2]
            keys, values = (
                x[head * num_blocks : (head + 1) * num_blocks].flatten(0, 1)[: num_blocks * x.shape[1] - padding]
                for x in (self.keys, self.values)
            )
            queries = self.queries[batch, number, rows]
            result = _sdpa(queries.flatten(0, 1)[None, None], keys[None, None], values[None, None])
            self.out[batch, number, rows] = result.view_as(queries)


def _filled_up(x: Tensor, block_tokens: int) -> Tensor:
    """(B, L, N, D) -> (B, R * b, N, D), zeros at the end."""
    missing = -x.shape[1] % block_tokens
    return F.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x


def _in_blocks(x: Tensor, block_tokens: int) -> Tensor:
    """(B, R * b, N, D) -> (B, N, R, b, D), a view."""
    return torch.unflatten(x, 1, (-1, block_tokens)).permute(0, 3, 1, 2, 4)


def _groups(mask: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks of queries that fit in one call: (batch, head, row) (n, 3) and their columns (n, K), ascending.

    Rows that see the last block are apart from those that do not: theirs are shorter where that block is partial.
    """
    kind = mask.sum(-1) * 2 + mask[..., -1]
    for value in sorted(set(kind.flatten().tolist())):
        if value > 0:
            places = (kind == value).nonzero()
            columns = mask[places.unbind(1)].nonzero()[:, 1].view(len(places), value // 2)
            yield places, columns


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)
