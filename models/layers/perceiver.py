"""Attention and MLP layers of the Perceiver branch.

Source: Perceiver IO, arXiv 2107.14795, appendix E, as used by Dynamic Perceiver, arXiv 2306.11248, Sec. 3; parameter
names are those of the official checkpoints.

Legend: B batch, Q query tokens, K key/value tokens, C channels, N heads, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class MultiHeadAttention(nn.Module):
    """Attention of (B, Q, C_q) over (B, K, C_kv); returns (B, Q, C_q).

    ``key_positions`` adds a learned bias (1, K, C) to the projected keys; K is then fixed.
    """

    def __init__(
        self, num_heads: int, q_channels: int, kv_channels: int, inner: int, key_positions: int | None = None
    ) -> None:
        super().__init__()
        if inner % num_heads:
            raise ValueError(f"{inner} attention channels do not divide into {num_heads} heads; change either")
        self.num_heads = num_heads
        self.relative_position_bias = (
            nn.Parameter(torch.zeros(1, key_positions, inner)) if key_positions is not None else None
        )
        self.q_proj = nn.Linear(q_channels, inner, bias=False)
        self.k_proj = nn.Linear(kv_channels, inner, bias=False)
        self.v_proj = nn.Linear(kv_channels, inner, bias=False)
        self.o_proj = nn.Linear(inner, q_channels)

    def forward(self, query: Tensor, key_value: Tensor) -> Tensor:
        """Scaled dot-product attention; the scale is 1/sqrt(D)."""
        key = self.k_proj(key_value)
        if self.relative_position_bias is not None:
            key = key + self.relative_position_bias
        q, k, v = (self._split(t) for t in (self.q_proj(query), key, self.v_proj(key_value)))
        mixed = functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out

    def _split(self, x: Tensor) -> Tensor:
        """(B, L, C) -> (B, N, L, D)."""
        return x.view(x.shape[0], x.shape[1], self.num_heads, -1).transpose(1, 2)


class CrossAttention(nn.Module):
    """Attention with a layer norm on each of its two inputs."""

    def __init__(
        self, num_heads: int, q_channels: int, kv_channels: int, inner: int, key_positions: int | None
    ) -> None:
        super().__init__()
        self.q_norm = nn.LayerNorm(q_channels)
        self.kv_norm = nn.LayerNorm(kv_channels)
        self.attention = MultiHeadAttention(num_heads, q_channels, kv_channels, inner, key_positions)

    def forward(self, query: Tensor, key_value: Tensor) -> Tensor:
        """(B, Q, C_q), (B, K, C_kv) -> (B, Q, C_q)."""
        out: Tensor = self.attention(self.q_norm(query), self.kv_norm(key_value))
        return out


class SelfAttention(nn.Module):
    """Attention of tokens over themselves, behind one layer norm."""

    def __init__(self, num_heads: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attention = MultiHeadAttention(num_heads, channels, channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        tokens = self.norm(tokens)
        out: Tensor = self.attention(tokens, tokens)
        return out


class MLP(nn.Module):
    """Layer norm, widen, GELU, narrow."""

    def __init__(self, channels: int, widening: int) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(channels)
        self.fc1 = nn.Linear(channels, widening * channels)
        self.fc2 = nn.Linear(widening * channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        out: Tensor = self.fc2(functional.gelu(self.fc1(self.layernorm(tokens))))
        return out


class CrossAttentionLayer(nn.Module):
    """Residual cross-attention, then a residual MLP."""

    def __init__(
        self, q_channels: int, kv_channels: int, *, inner: int | None = None, key_positions: int | None = None
    ) -> None:
        super().__init__()
        self.cross_attn = CrossAttention(1, q_channels, kv_channels, inner or q_channels, key_positions)
        self.mlp = MLP(q_channels, 1)

    def forward(self, query: Tensor, key_value: Tensor) -> Tensor:
        """(B, Q, C_q), (B, K, C_kv) -> (B, Q, C_q)."""
        query = query + self.cross_attn(query, key_value)
        out: Tensor = query + self.mlp(query)
        return out


class SelfAttentionLayer(nn.Module):
    """Residual self-attention, then a residual MLP."""

    def __init__(self, num_heads: int, channels: int, widening: int) -> None:
        super().__init__()
        self.self_attn = SelfAttention(num_heads, channels)
        self.mlp = MLP(channels, widening)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        tokens = tokens + self.self_attn(tokens)
        out: Tensor = tokens + self.mlp(tokens)
        return out
