"""The transformer of DiT-MoE. Its state has the published names; experts are packed in memory, for one kernel.

Legend: B pictures, N tokens of each, T = B N, W width, E experts, K of them a token, F hidden units of one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.families.dit_moe.config import DitMoeConfig
from models.layers.dit import EPSILON, ClassEmbed, FinalLayer, PatchEmbed, TimeEmbed, modulated, modulation
from models.methods.experts.fused import FusedSwiglu
from models.methods.experts.gates import softmax_top_k
from models.methods.experts.grouped import PreparedExperts, grouped_swiglu


class Gated(NamedTuple):
    """Of one layer: how its gate scored the experts for each token (T, E), and which were taken (T, K)."""

    logits: Tensor
    ids: Tensor


def balance_loss(layers: Sequence[Gated]) -> Tensor:
    """What training adds, times 0.01 as published: 1 a layer where experts share tokens evenly, more where not."""
    losses = []
    for logits, ids in layers:
        probabilities, num_experts = logits.softmax(-1), logits.shape[1]
        share = torch.bincount(ids.flatten(), minlength=num_experts).to(probabilities) / ids.numel()
        losses.append(num_experts * (share * probabilities.mean(0)).sum())
    return torch.stack(losses).sum()


class DitMoe(nn.Module):
    """Latents, times and classes to what the process predicts: noise (and variance), or velocity."""

    pos_embed: Tensor

    def __init__(self, config: DitMoeConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.x_embedder = PatchEmbed(config.latent_channels, width, config.patch_size)
        self.t_embedder = TimeEmbed(width)
        self.y_embedder = ClassEmbed(config.num_classes + 1, width)
        self.register_buffer("pos_embed", _positions(width, config.grid_side))
        self.blocks: Any = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(width, config.patch_size, config.out_channels)
        self._initialize()

    def forward(
        self,
        latents: Tensor,
        times: Tensor,
        classes: Tensor,
        top_k: int | None = None,
        gated: list[Gated] | None = None,
    ) -> Tensor:
        """``latents`` (B, C, side, side), ``times`` (B,) as the process counts them, ``classes`` (B,).

        ``top_k``: experts a token, where fewer than the network was trained with. ``gated``: each layer's is appended.
        """
        tokens = self.x_embedder(latents) + self.pos_embed
        condition = F.silu(self.t_embedder(times) + self.y_embedder(classes))
        for block in self.blocks:
            tokens, layer = block(tokens, condition, top_k or self.config.top_k)
            if gated is not None:
                gated.append(layer)
        return self._unpatched(self.final_layer(tokens, condition))

    def _unpatched(self, patches: Tensor) -> Tensor:
        side, patch = self.config.grid_side, self.config.patch_size
        grid = patches.view(-1, side, side, patch, patch, self.config.out_channels)
        return grid.permute(0, 5, 1, 3, 2, 4).reshape(
            len(patches), self.config.out_channels, side * patch, side * patch
        )

    @torch.no_grad()
    def _initialize(self) -> None:
        """As published: Xavier, and nothing but zeros where a block or the network ends."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        patches = self.x_embedder.proj
        nn.init.xavier_uniform_(patches.weight.view(len(patches.weight), -1))
        nn.init.zeros_(patches.bias)  # type: ignore[arg-type]
        first, _, last = self.t_embedder.mlp
        for weight in (self.y_embedder.embedding_table.weight, first.weight, last.weight):
            nn.init.normal_(weight, std=0.02)
        for block in self.blocks:
            nn.init.kaiming_uniform_(block.moe.gate.weight, a=math.sqrt(5))
        for layer in (*self.blocks, self.final_layer):
            nn.init.zeros_(layer.adaLN_modulation[1].weight)
        nn.init.zeros_(self.final_layer.linear.weight)


class Block(nn.Module):
    """Attention, then experts, each scaled, shifted and gated by time and class."""

    def __init__(self, config: DitMoeConfig) -> None:
        super().__init__()
        attention = NormedAttention if config.attention == "normed" else PlainAttention
        self.attn = attention(config.width, config.num_heads)
        self.moe = MixtureOfExperts(config)
        self.adaLN_modulation = modulation(config.width, 6)

    def forward(self, tokens: Tensor, condition: Tensor, top_k: int) -> tuple[Tensor, Gated]:
        """``condition``: after its SiLU, which all blocks share."""
        shift, scale, gate, moe_shift, moe_scale, moe_gate = self.adaLN_modulation(condition)[:, None].chunk(6, dim=-1)
        tokens = tokens + gate * self.attn(modulated(tokens, shift, scale))
        mixed, gated = self.moe(modulated(tokens, moe_shift, moe_scale), top_k)
        return tokens + moe_gate * mixed, gated


class PlainAttention(nn.Module):
    """Of S and B, with the names of timm."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:  # noqa: D102
        q, k, v = _heads(self.qkv(tokens), self.num_heads)
        attended: Tensor = self.proj(_attended(q, k, v))
        return attended


class NormedAttention(nn.Module):
    """Of XL and G: queries and keys are normalised in each head, with weight and bias."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.Wqkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.LayerNorm(width // num_heads, eps=EPSILON)
        self.k_norm = nn.LayerNorm(width // num_heads, eps=EPSILON)
        self.out_proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:  # noqa: D102
        q, k, v = _heads(self.Wqkv(tokens), self.num_heads)
        attended: Tensor = self.out_proj(_attended(self.q_norm(q), self.k_norm(k), v))
        return attended


class MixtureOfExperts(nn.Module):
    """The top K experts of each token, weighted by a softmax over all that is not renormalised, and the shared one."""

    def __init__(self, config: DitMoeConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.num_experts, bias=False)
        self.experts = PackedExperts(config.num_experts, config.width, config.expert_width)
        self.shared_experts = SharedExperts(config.width, config.shared_width)

    def forward(self, tokens: Tensor, top_k: int) -> tuple[Tensor, Gated]:  # noqa: D102
        flat = tokens.flatten(0, -2)
        logits = self.gate(flat)
        ids, weights = softmax_top_k(logits, top_k)
        mixed = self.experts(flat, ids, weights, self.shared_experts)
        return mixed.view_as(tokens), Gated(logits, ids)

    def lay_out(self) -> None:
        """Replace the weights of experts by those that run fastest, where that is so. They can then only be saved."""
        experts, shared = self.experts, self.shared_experts
        if not PreparedExperts.suit(experts.gate_up, experts.down):
            return
        experts.prepared = prepared = PreparedExperts(experts.gate_up, experts.down, (shared.gate_up, shared.down))
        assert prepared.shared is not None
        experts.replace(prepared.experts)
        shared.replace([prepared.shared])


class _Packed(nn.Module):
    """Weights of SwiGLUs, one matrix for gate and up. In a state they have the published names, apart."""

    gate_up: nn.Parameter
    down: nn.Parameter

    def __init__(self, prefixes: Sequence[str]) -> None:
        super().__init__()
        self._prefixes = prefixes
        self._replaced: Sequence[FusedSwiglu] = ()

    def replace(self, by: Sequence[FusedSwiglu]) -> None:
        """Give the parameters up: their memory is free, and they are saved as ``by`` has them."""
        self._replaced = by
        del self.gate_up, self.down

    def _parts(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Published prefix, and the matrices (2F, W) and (W, F) behind it."""
        matrices = (one.unpacked() for one in self._replaced) if self._replaced else self._matrices()
        for prefix, (gate_up, down) in zip(self._prefixes, matrices, strict=True):
            yield prefix, gate_up, down

    def _matrices(self) -> Iterator[tuple[Tensor, Tensor]]:
        raise NotImplementedError

    def _joined(self, gate_up: list[Tensor], down: list[Tensor]) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for part, gate_up, down in self._parts():
            gate, up = gate_up.chunk(2)
            for name, tensor in (("gate_proj", gate), ("up_proj", up), ("down_proj", down)):
                destination[f"{prefix}{part}{name}.weight"] = tensor if keep_vars else tensor.detach()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *told: Any) -> None:
        names = [
            [f"{prefix}{part}{name}.weight" for name in ("gate_proj", "up_proj", "down_proj")]
            for part in self._prefixes
        ]
        if all(name in state_dict for part in names for name in part):
            parts = [[state_dict.pop(name) for name in part] for part in names]
            packed = self._joined([torch.cat(part[:2]) for part in parts], [part[2] for part in parts])
            state_dict |= {f"{prefix}gate_up": packed[0], f"{prefix}down": packed[1]}
        super()._load_from_state_dict(state_dict, prefix, *told)


class PackedExperts(_Packed):
    """Those that a gate chooses of: ``gate_up`` (E, 2F, W), ``down`` (E, W, F)."""

    def __init__(self, num_experts: int, width: int, hidden: int) -> None:
        super().__init__([f"{expert}." for expert in range(num_experts)])
        bound = math.sqrt(6 / (width + hidden))
        self.prepared: PreparedExperts | None = None  # the shared one included
        self.gate_up = nn.Parameter(torch.empty(num_experts, 2 * hidden, width).uniform_(-bound, bound))
        self.down = nn.Parameter(torch.empty(num_experts, width, hidden).uniform_(-bound, bound))

    def forward(self, tokens: Tensor, ids: Tensor, weights: Tensor, shared: SharedExperts) -> Tensor:
        """``tokens`` (T, W), ``ids`` and ``weights`` (T, K)."""
        if self.prepared is not None:
            return self.prepared(tokens, ids, weights)
        return grouped_swiglu(tokens, self.gate_up, self.down, ids, weights, (shared.gate_up, shared.down))

    def _matrices(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.gate_up, self.down, strict=True)

    def _joined(self, gate_up: list[Tensor], down: list[Tensor]) -> tuple[Tensor, Tensor]:
        return torch.stack(gate_up), torch.stack(down)


class SharedExperts(_Packed):
    """What all tokens pass: ``gate_up`` (2F, W), ``down`` (W, F)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__([""])
        bound = math.sqrt(6 / (width + hidden))
        self.gate_up = nn.Parameter(torch.empty(2 * hidden, width).uniform_(-bound, bound))
        self.down = nn.Parameter(torch.empty(width, hidden).uniform_(-bound, bound))

    def forward(self, tokens: Tensor) -> Tensor:  # noqa: D102
        return _swiglu(tokens, self.gate_up, self.down)

    def _matrices(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield self.gate_up, self.down

    def _joined(self, gate_up: list[Tensor], down: list[Tensor]) -> tuple[Tensor, Tensor]:
        return gate_up[0], down[0]


def _swiglu(tokens: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = F.linear(tokens, gate_up).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, down)


def _heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, ...]:
    """(B, N, 3W) to three of (B, heads, N, W / heads)."""
    pictures, tokens, width = qkv.shape
    return qkv.view(pictures, tokens, 3, num_heads, width // 3 // num_heads).permute(2, 0, 3, 1, 4).unbind()


def _attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _positions(width: int, side: int) -> Tensor:
    """Sines and cosines of the column, then of the row (1, N, W)."""
    omega = 10_000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    rows, columns = torch.meshgrid(*[torch.arange(side, dtype=torch.float64)] * 2, indexing="ij")
    angles = [place.reshape(-1, 1) * omega for place in (columns, rows)]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1).float()[None]
