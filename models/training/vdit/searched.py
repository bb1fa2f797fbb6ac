"""Attention to the heaviest blocks, as training sees it: searched in every call, and with a gradient.

AdaSpa searches in a few steps of a clip and keeps what it found (models/methods/attention/adaspa.py); a training step
has no earlier one, so that it searches in its own queries and keys.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from models.methods.attention.adaspa_config import AdaSpaConfig
from models.methods.attention.adaspa_search import choose_blocks
from models.methods.attention.block_layout import BlockLayout


class SearchedAttention:
    """A ``SelfAttention`` without state."""

    def __init__(self, config: AdaSpaConfig) -> None:
        self.config = config

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, layer: int) -> Tensor:
        """See ``SelfAttention``."""
        num_tokens, side = q.shape[1], self.config.block_tokens
        mask = choose_blocks(_mass(q, k, side), self.config, num_tokens)
        tokens = BlockLayout(mask=mask, block_tokens=side, num_tokens=num_tokens).token_mask()
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), tokens)
        return out.transpose(1, 2)


@torch.no_grad()
def _mass(q: Tensor, k: Tensor, side: int) -> Tensor:
    """Attention weights summed over pairs of blocks: (B, L, N, D) twice -> float32 (B, N, R, C)."""
    scores = q.transpose(1, 2).float() @ k.permute(0, 2, 3, 1).float() / math.sqrt(q.shape[-1])
    of_rows = torch.unflatten(scores.softmax(-1), -1, (-1, side)).sum(-1)
    return torch.unflatten(of_rows, -2, (-1, side)).sum(-2)
