"""Attention over a part of the keys, and how such parts are put together exactly.

Source: online softmax (Milakov and Gimelshein, arXiv:1805.02867), as in FlashAttention and Ring Attention
(arXiv:2310.01889).

Legend: B batch, L tokens, N heads, D head dim.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def attention_with_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attention and, for each query row and head, the logarithm of its softmax's denominator.

    (B, L, N, D), 2 x (B, Lk, N, D) -> (B, L, N, D), (B, L, N) in float32. Uses the backends of SDPA that report it:
    flash on a CPU, flash for half precision and memory-efficient for float32 on a GPU.
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if q.device.type == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    elif q.device.type == "cuda" and q.dtype in (torch.float16, torch.bfloat16) and q.shape[-1] % 8 == 0:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[:2]
    elif q.device.type == "cuda":
        out, lse = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True)[:2]
        lse = lse[..., : q.shape[2]]  # padded to a multiple of 32 rows
    else:
        out, lse = plain_attention_with_lse(q, k, v)
    return out.transpose(1, 2), lse.transpose(1, 2)


def plain_attention_with_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The same on (B, N, L, D) by matrix products in float32; holds L x Lk logits."""
    logits = q.float() @ k.float().transpose(-1, -2) / math.sqrt(q.shape[-1])
    lse = logits.logsumexp(-1)
    return ((logits - lse.unsqueeze(-1)).exp() @ v.float()).to(q.dtype), lse


class Merge:
    """Sum of attention over disjoint sets of keys, kept in float32 and normalised throughout.

    A query row that no part has reached is zero with weight zero (its LSE is minus infinity).
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self._out = torch.zeros(shape, dtype=torch.float32, device=device)
        self._lse = torch.full(shape[:-1], -math.inf, dtype=torch.float32, device=device)

    def add(self, out: Tensor, lse: Tensor, rows: slice | Tensor = slice(None)) -> None:
        """Take in attention of query ``rows`` (dim 1) over keys that those rows have not seen."""
        before, total_before = self._out[:, rows], self._lse[:, rows]
        total = torch.logaddexp(total_before, lse)
        self._out[:, rows] = before * _weight(total_before, total) + out * _weight(lse, total)
        self._lse[:, rows] = total

    def result(self, dtype: torch.dtype) -> Tensor:
        """Attention over every key that was added. (B, L, N, D)."""
        return self._out.to(dtype)


def _weight(lse: Tensor, total: Tensor) -> Tensor:
    """Share of the denominator; 0 where there is none yet."""
    return torch.where(lse == -math.inf, 0.0, (lse - total).exp()).unsqueeze(-1)
