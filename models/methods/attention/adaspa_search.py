"""AdaSpa's search: how much of each query block's attention falls on each key block, and which blocks to keep.

Source: AdaSpa, arXiv:2502.21079 The printed pseudo-code has a logarithm where exp is meant.

Legend: B batch, L tokens, N heads, D head dim, R blocks of queries, C blocks of keys, b tokens of a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from models.methods.attention.adaspa_config import AdaSpaConfig, num_blocks
from models.methods.attention.triton_support import has_triton, supports

AdaptHeads = Callable[[Tensor, AdaSpaConfig], Tensor]
"""From recalls to sparsities, (B, N) to (B, N): ``adapt_heads``, or that over the heads of all ranks."""
_LARGEST_MASS = 1e30  # a weight by a stale LSE may pass 1; sums of it stay finite
_SCORE_BYTES = 1 << 20  # of scores held at a time on a CPU; on a GPU, where the kernel is missing, 64 times that
_QUERIES_PER_CALL = 256


def block_mass(q: Tensor, k: Tensor, lse: Tensor, block_tokens: int) -> Tensor:
    """Attention weights summed over each pair of blocks: (B, L, N, D) twice, (B, N, L) -> float32 (B, N, R, C).

    ``lse`` is the logarithm of each row's softmax denominator, of this step or of an earlier one. Holds a few rows of
    scores at a time, never L x L.
    """
    if q.device.type == "cuda" and has_triton() and supports(block_tokens):
        from models.methods.attention.triton_block_mass import triton_block_mass

        return triton_block_mass(q, k, lse, block_tokens)
    return plain_block_mass(q, k, lse, block_tokens)


def plain_block_mass(q: Tensor, k: Tensor, lse: Tensor, block_tokens: int) -> Tensor:
    """The same by matrix products in float32, on any device. The LSE takes part in the product as a further column."""
    num_tokens = q.shape[1]
    blocks = num_blocks(num_tokens, block_tokens)
    padding = blocks * block_tokens - num_tokens
    queries = torch.cat((q.transpose(1, 2).float() / math.sqrt(q.shape[-1]), -lse.unsqueeze(-1)), -1)
    queries = F.pad(queries, (0, 0, 0, padding))
    queries[:, :, num_tokens:, -1] = -math.inf  # rows of padding weigh nothing
    keys = F.pad(k.permute(0, 2, 3, 1).float(), (0, 0, 0, 1), value=1.0)  # (B, N, D + 1, L)
    mass = torch.empty(*lse.shape[:2], blocks, blocks, dtype=torch.float32, device=q.device)
    rows, columns = _blocks_per_call(q, block_tokens)
    for head in range(q.shape[0] * q.shape[2]):
        at = divmod(head, q.shape[2])
        for row in range(0, blocks, rows):
            some = queries[at][row * block_tokens : (row + rows) * block_tokens]
            for column in range(0, blocks, columns):
                weights = (some @ keys[at][:, column * block_tokens : (column + columns) * block_tokens]).exp_()
                mass[at][row : row + rows, column : column + columns] = _sum_blocks(weights, block_tokens)
    return mass.clamp_(max=_LARGEST_MASS)


def adapt_heads(recalls: Tensor, config: AdaSpaConfig) -> Tensor:
    """Sparsity of each head, float64 (B, N); the mean stays.

    n heads recall more than the threshold, at most half of all: the n best become sparser, the n worst denser.
    """
    num_heads = recalls.shape[-1]
    count = (recalls > config.recall_threshold).sum(-1, keepdim=True).clamp(max=num_heads // 2)
    place = recalls.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)  # 0 is the best
    step = (place < count).double() - (place >= num_heads - count).double()
    return config.sparsity + config.head_step * step


def choose_blocks(mass: Tensor, config: AdaSpaConfig, num_tokens: int, adapt: AdaptHeads = adapt_heads) -> Tensor:
    """Bool (B, N, R, C), True = keep: the same number in every row of a head, heaviest first, and all text."""
    scores = mass.clone()
    first_text = _first_text_block(config, num_tokens)
    scores[..., first_text:] = math.inf
    keep = blocks_to_keep(mass, config, num_tokens, adapt)
    best = scores.topk(int(keep.max()), dim=-1).indices
    is_kept = torch.arange(best.shape[-1], device=mass.device) < keep[:, :, None, None]
    chosen = torch.zeros_like(mass, dtype=torch.bool).scatter_(-1, best, is_kept.expand_as(best))
    chosen[..., first_text:, :] = True
    return chosen


def blocks_to_keep(mass: Tensor, config: AdaSpaConfig, num_tokens: int, adapt: AdaptHeads = adapt_heads) -> Tensor:
    """Key blocks per row of each head, int64 (B, N)."""
    num_columns = mass.shape[-1]
    num_text = num_columns - _first_text_block(config, num_tokens)
    sparsity = torch.full(mass.shape[:2], config.sparsity, dtype=torch.float64, device=mass.device)
    if config.head_adaptive:
        sparsity = adapt(recall(mass, config, num_tokens), config)
    keep = ((1 - sparsity) * num_columns).round().long()
    return keep.clamp(min=max(1, num_text), max=num_columns)


def recall(mass: Tensor, config: AdaSpaConfig, num_tokens: int) -> Tensor:
    """Share of each head's mass that is kept at the configured sparsity. (B, N)."""
    num_columns = mass.shape[-1]
    first_text = _first_text_block(config, num_tokens)
    keep = min(num_columns, max(1, num_columns - first_text, round((1 - config.sparsity) * num_columns)))
    rows = mass[:, :, :first_text]
    scores = rows.clone()
    scores[..., first_text:] = math.inf
    best = scores.topk(keep, dim=-1).indices
    kept = rows.gather(-1, best).sum((-1, -2))
    return kept / rows.sum((-1, -2)).clamp(min=torch.finfo(torch.float32).tiny)


def _first_text_block(config: AdaSpaConfig, num_tokens: int) -> int:
    """Blocks from here on touch text."""
    if config.num_text_tokens > num_tokens:
        raise ValueError(f"{config.num_text_tokens} text tokens in a sequence of {num_tokens}; it must hold them")
    blocks = num_blocks(num_tokens, config.block_tokens)
    return (num_tokens - config.num_text_tokens) // config.block_tokens if config.num_text_tokens else blocks


def _sum_blocks(weights: Tensor, block_tokens: int) -> Tensor:
    """(rows * b, up to columns * b) -> (rows, columns)."""
    sums = weights.view(-1, block_tokens, weights.shape[1]).sum(1)
    return F.pad(sums, (0, -sums.shape[1] % block_tokens)).view(len(sums), -1, block_tokens).sum(-1)


def _blocks_per_call(q: Tensor, block_tokens: int) -> tuple[int, int]:
    """Blocks of queries and of keys: as many queries as make a fast product, as many keys as the bytes allow."""
    limit = _SCORE_BYTES * (1 if q.device.type == "cpu" else 64)
    rows = max(1, _QUERIES_PER_CALL // block_tokens)
    return rows, max(1, limit // (4 * rows * block_tokens * block_tokens))
