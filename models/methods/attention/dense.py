"""Attention of every token to every token, and the plain twin that all sparse kinds are compared with.

Legend: B batch, L tokens, N heads, D head dim.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


class DenseAttention:
    """torch's scaled dot-product attention. Stateless."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, layer: int = 0) -> Tensor:
        """See ``SelfAttention``."""
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return out.transpose(1, 2)


DENSE = DenseAttention()


def reference(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention written out in float32.

    ``mask``: bool, True = attend; (L, Lk), or anything that broadcasts to (B, N, L, Lk). Rows without a key give 0.
    """
    scores = torch.einsum("blnd,bmnd->bnlm", q.float(), k.float()) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    weights = torch.softmax(scores, dim=-1).nan_to_num(0.0)
    return torch.einsum("bnlm,bmnd->blnd", weights, v.float()).to(q.dtype)
