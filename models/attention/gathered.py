"""Block-sparse attention by gathering: dense attention over the chosen keys, put side by side. Exact, no mask.

Blocks of queries with equally many chosen keys share a call. The copy costs 1/b of the arithmetic for blocks of b
tokens, whatever the sparsity; a mask would save nothing. Best with blocks of 128 and more on a CPU, where dense
attention with few query rows per call is slower.

Legend: B batch, L tokens, N heads, D head dim, H = B * N, R blocks of queries, C blocks of keys, b tokens of a block,
K chosen blocks.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from models.attention.block_layout import BlockLayout

_GATHERED_BYTES = 1 << 20  # of keys in one call: they and the values stay near the core


def gathered_attention(q: Tensor, k: Tensor, v: Tensor, blocks: BlockLayout) -> Tensor:
    """(B, L, N, D) each -> (B, L, N, D)."""
    batch, num_tokens, num_heads, _ = q.shape
    mask = blocks.mask.flatten(0, 1)  # (H, R, C)
    if bool(mask.all()):
        return _sdpa(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    q, k, v = (_in_blocks(x, blocks.block_tokens) for x in (q, k, v))  # (H, R, b, D)
    out = torch.zeros_like(q)
    padding = mask.shape[2] * blocks.block_tokens - num_tokens
    for rows, columns, is_full in _groups(mask):
        if is_full:
            _attend_full(out, q, k, v, rows, padding)
        else:
            for some in _calls(rows, columns, k):
                _attend(out, q, k, v, rows[some], columns[some], padding)
    return out.view(batch, num_heads, -1, out.shape[-1])[:, :, :num_tokens].transpose(1, 2)


def _in_blocks(x: Tensor, block_tokens: int) -> Tensor:
    """(B, L, N, D) -> (H, R, b, D), the last block filled up with zeros."""
    x = x.transpose(1, 2)
    x = F.pad(x, (0, 0, 0, -x.shape[2] % block_tokens))
    return x.contiguous().view(-1, x.shape[2] // block_tokens, block_tokens, x.shape[3])


def _groups(mask: Tensor) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Blocks of queries that fit in one call: numbers (n,) among H * R, their columns (n, K), whether K is C.

    Rows that see the last block are apart from those that do not: theirs are shorter where that block is partial.
    """
    num_columns = mask.shape[2]
    mask = mask.flatten(0, 1)
    kind = mask.sum(1) * 2 + mask[:, -1]
    for value in sorted(set(kind.tolist())):
        count = value // 2
        if count == 0:
            continue
        rows = (kind == value).nonzero().flatten()
        columns = mask[rows].nonzero()[:, 1].view(len(rows), count)
        yield rows, columns, count == num_columns


def _calls(rows: Tensor, columns: Tensor, k: Tensor) -> Iterator[slice]:
    """Runs of rows whose keys stay within bounds."""
    bytes_per_row = columns.shape[1] * k.shape[2] * k.shape[3] * k.element_size()
    step = max(1, _GATHERED_BYTES // bytes_per_row)
    return (slice(start, start + step) for start in range(0, len(rows), step))


def _attend(out: Tensor, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, padding: int) -> None:
    """Rows with gathered keys, into ``out``."""
    num_rows, num_columns = q.shape[1], k.shape[1]
    chosen = (rows // num_rows * num_columns).unsqueeze(1) + columns  # numbers among H * C
    sees_last = padding > 0 and int(columns[0, -1]) == num_columns - 1
    keys, values = (_side_by_side(x, chosen, padding if sees_last else 0) for x in (k, v))
    queries = q.flatten(0, 1)[rows]
    out.view(-1, *out.shape[2:])[rows] = _sdpa(queries.unsqueeze(1), keys, values).squeeze(1)


def _side_by_side(x: Tensor, chosen: Tensor, padding: int) -> Tensor:
    """(n, 1, K * b - padding, D)."""
    gathered = x.flatten(0, 1).index_select(0, chosen.flatten())
    gathered = gathered.view(len(chosen), 1, -1, x.shape[-1])
    return gathered[:, :, : gathered.shape[2] - padding]


def _attend_full(out: Tensor, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, padding: int) -> None:
    """Rows that see everything, one call per head and nothing copied."""
    num_rows = q.shape[1]
    heads = rows // num_rows
    for head in sorted(set(heads.tolist())):
        mine = rows[heads == head] % num_rows
        keys, values = (x[head].flatten(0, 1)[: x.shape[1] * x.shape[2] - padding] for x in (k, v))
        queries = q[head, mine].flatten(0, 1)
        result = _sdpa(queries[None, None], keys[None, None], values[None, None])
        out[head, mine] = result.view(len(mine), *q.shape[2:])


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)
