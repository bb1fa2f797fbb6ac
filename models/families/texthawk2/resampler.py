"""Resampler: bidirectional decoder layers in which the queries of a tile read several depths of the vision tower."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention without a mask; keys and values come from wherever they are given."""

    def __init__(self, width: int, source_width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(source_width, width)
        self.v_proj = nn.Linear(source_width, width)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """``query`` (T, N, width), ``key`` and ``value`` (T, M, source width) to (T, N, width)."""
        q, k, v = self._heads(self.q_proj(query)), self._heads(self.k_proj(key)), self._heads(self.v_proj(value))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out

    def _heads(self, tokens: Tensor) -> Tensor:
        return tokens.view(*tokens.shape[:2], self.num_heads, -1).transpose(1, 2)


class GatedMlp(nn.Module):
    """SwiGLU, as in the language model."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden_width, bias=False)
        self.up_proj = nn.Linear(width, hidden_width, bias=False)
        self.down_proj = nn.Linear(hidden_width, width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., width) to (..., width)."""
        out: Tensor = self.down_proj(nn.functional.silu(self.gate_proj(tokens)) * self.up_proj(tokens))
        return out


class ResamplerLayer(nn.Module):
    """Self-attention among a tile's queries, cross-attention to one level of its features, gated MLP; all pre-norm."""

    def __init__(self, width: int, source_width: int, num_heads: int, mlp_width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.self_norm = nn.RMSNorm(width, eps=eps)
        self.self_attn = Attention(width, width, num_heads)
        self.cross_norm = nn.RMSNorm(width, eps=eps)
        self.source_norm = nn.RMSNorm(source_width, eps=eps)
        self.cross_attn = Attention(width, source_width, num_heads)
        self.mlp_norm = nn.RMSNorm(width, eps=eps)
        self.mlp = GatedMlp(width, mlp_width)

    def forward(self, queries: Tensor, features: Tensor, key_position: Tensor) -> Tensor:
        """``queries`` (T, N, width), ``features`` and ``key_position`` (T, M, source width) to (T, N, width)."""
        own = self.self_norm(queries)
        queries = queries + self.self_attn(own, own, own)
        source = self.source_norm(features)
        queries = queries + self.cross_attn(self.cross_norm(queries), source + key_position, source)
        out: Tensor = queries + self.mlp(self.mlp_norm(queries))
        return out


class Resampler(nn.Module):
    """Layers with multi-level cross-attention (TextHawk, arXiv 2404.09204, section 3.4).

    ``routing[i]`` is the level of features that layer i reads.
    """

    def __init__(
        self, width: int, source_width: int, num_heads: int, mlp_width: int, routing: Sequence[int], eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.routing = tuple(routing)
        self.layers = nn.ModuleList(
            ResamplerLayer(width, source_width, num_heads, mlp_width, eps) for _ in self.routing
        )
        self.norm = nn.RMSNorm(width, eps=eps)

    def forward(self, queries: Tensor, levels: Sequence[Tensor], key_position: Tensor) -> Tensor:
        """``queries`` (T, N, width), each of ``levels`` (T, M, source width) to (T, N, width)."""
        for level, layer in zip(self.routing, self.layers, strict=True):
            queries = layer(queries, levels[level], key_position)
        out: Tensor = self.norm(queries)
        return out
