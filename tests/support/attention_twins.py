"""Plain twins of sparse attention: everything written out, L x L."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def qkv(num_tokens: int, *, batch: int = 2, heads: int = 3, dim: int = 16, seed: int = 0) -> tuple[Tensor, ...]:
    """Queries, keys and values (B, L, N, D) of unit variance."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, num_tokens, heads, dim, generator=generator) for _ in range(3))


def random_blocks(num_blocks: int, *, batch: int = 2, heads: int = 3, share: float = 0.5, seed: int = 0) -> Tensor:
    """Bool (B, N, R, C): ragged rows."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, heads, num_blocks, num_blocks, generator=generator) < share


def lse(q: Tensor, k: Tensor) -> Tensor:
    """(B, N, L)."""
    return _scores(q, k).logsumexp(-1)


def block_mass(q: Tensor, k: Tensor, lse_: Tensor, block_tokens: int) -> Tensor:
    """(B, N, R, C), one pair of blocks after the other."""
    weights = (_scores(q, k) - lse_.unsqueeze(-1)).exp()
    starts = range(0, q.shape[1], block_tokens)
    rows = [
        torch.stack([_block(weights, row, column, block_tokens).sum((-1, -2)) for column in starts], -1)
        for row in starts
    ]
    return torch.stack(rows, -2)


def choose(mass: Tensor, sparsities: list[list[float]], num_text_blocks: int) -> Tensor:
    """Bool (B, N, R, C): per head and row the heaviest blocks, text first; rows of text see all."""
    num_columns = mass.shape[-1]
    chosen = torch.zeros_like(mass, dtype=torch.bool)
    text = range(num_columns - num_text_blocks, num_columns)
    for row, heads in enumerate(sparsities):
        for head, sparsity in enumerate(heads):
            keep = max(1, num_text_blocks, round((1 - sparsity) * num_columns))
            for block in range(num_columns):
                weight = mass[row, head, block].tolist()
                order = sorted(range(num_columns), key=lambda c: (c not in text, -weight[c]))
                chosen[row, head, block, list(range(num_columns)) if block in text else order[:keep]] = True
    return chosen


def _scores(q: Tensor, k: Tensor) -> Tensor:
    return torch.einsum("blnd,bmnd->bnlm", q.double(), k.double()).float() / math.sqrt(q.shape[-1])


def _block(weights: Tensor, row: int, column: int, size: int) -> Tensor:
    return weights[..., row : row + size, column : column + size]
