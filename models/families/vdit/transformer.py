"""OpenSoraT2V, the diffusion transformer of Open-Sora-Plan v1.2: 3-D full attention, AdaLN-single, 3-D RoPE.

Source: official code github.com/PKU-YuanGroup/Open-Sora-Plan at tag v1.2.0, opensora/models/diffusion/opensora. Names
of parameters are those of the published checkpoints. Differs from it: self-attention is an argument, and the forward
pass is in parts, so that shards of a sequence and subsets of its tokens run through the same code. Image-only inputs
and the downsampler, which no published v1.2 checkpoint uses, are left out.

Legend: B batch, C latent channels, T/H/W latent frames, rows, columns, L tokens (t-major), S text tokens, N heads,
D head dim, W width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.families.vdit.config import OpenSoraConfig
from models.families.vdit.rope3d import grid_positions, rotate, rotation
from models.methods.attention.base import SelfAttention
from models.methods.attention.dense import DENSE
from models.methods.packing.layout import BATCH, Layout

_FREQUENCIES = 256


class Conditioning(NamedTuple):
    """What every block reads besides its tokens: ``adaln`` (B, 6, W), ``embedded`` (B, W), ``text`` (B, S, W)."""

    adaln: Tensor
    embedded: Tensor
    text: Tensor


class Rotation(NamedTuple):
    """Cosines and sines of the tokens' positions, (L, D) or (B, L, D)."""

    cos: Tensor
    sin: Tensor


class PatchEmbed(nn.Module):
    """2x2 patches of each latent frame."""

    def __init__(self, config: OpenSoraConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.in_channels, config.width, config.patch_size, stride=config.patch_size)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, L, W)."""
        batch = latents.shape[0]
        patches = self.proj(latents.transpose(1, 2).flatten(0, 1)).flatten(2).transpose(1, 2)
        return patches.reshape(batch, -1, patches.shape[-1])  # type: ignore[no-any-return]


class TimestepEmbedder(nn.Module):
    """Two linear layers on sinusoids."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(_FREQUENCIES, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, timestep: Tensor) -> Tensor:
        """(B,) to (B, W)."""
        half = _FREQUENCIES // 2
        steps = torch.arange(half, device=timestep.device, dtype=torch.float32)
        angles = timestep.float()[:, None] * torch.exp(-math.log(10_000.0) * steps / half)
        sinusoids = torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(sinusoids)))  # type: ignore[no-any-return]


class TimestepHolder(nn.Module):
    """A level in the names of the published checkpoints."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.timestep_embedder = TimestepEmbedder(width)


class AdaLayerNormSingle(nn.Module):
    """One modulation for all blocks (PixArt)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.emb = TimestepHolder(width)
        self.linear = nn.Linear(width, 6 * width)

    def forward(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) to (B, 6, W) and (B, W)."""
        embedded = self.emb.timestep_embedder(timestep)
        return self.linear(F.silu(embedded)).reshape(len(timestep), 6, -1), embedded


class TextProjection(nn.Module):
    """Captions to the width of the model."""

    def __init__(self, caption_channels: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(caption_channels, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, text: Tensor) -> Tensor:
        """(B, S, caption) to (B, S, W)."""
        return self.linear_2(F.gelu(self.linear_1(text), approximate="tanh"))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Projections of queries, keys and values, and back. Whoever attends in between is an argument."""

    def __init__(self, config: OpenSoraConfig, width_kv: int) -> None:
        super().__init__()
        width = config.width
        self.heads = config.num_attention_heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width_kv, width)
        self.to_v = nn.Linear(width_kv, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def project(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of (B, L, W), keys and values of (B, M, W): each (B, ., N, D)."""
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        return self._split(q), self._split(k), self._split(v)

    def merge(self, out: Tensor) -> Tensor:
        """(B, L, N, D) to (B, L, W)."""
        return self.to_out[0](out.flatten(2))  # type: ignore[no-any-return]

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))  # type: ignore[no-untyped-call, no-any-return]


class GeluProjection(nn.Module):
    """A level in the names of the published checkpoints."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        """(..., W) to (..., inner)."""
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """Four times the width, and back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([GeluProjection(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        """(..., W)."""
        return self.net[2](self.net[0](x))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward; norms without weights."""

    def __init__(self, config: OpenSoraConfig) -> None:
        super().__init__()
        width = config.width
        self.eps = config.norm_eps
        self.attn1 = Attention(config, width)
        self.attn2 = Attention(config, config.cross_attention_dim)
        self.ff = FeedForward(width)
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)

    def forward(
        self,
        x: Tensor,
        turn: Rotation,
        conditioning: Conditioning,
        text_mask: Tensor | None,
        attention: SelfAttention,
        layer: int,
        layout: Layout = BATCH,
    ) -> Tensor:
        """(B, L, W), of all tokens or of some. ``text_mask``: bool, (B, 1, 1, S)."""
        modulation = (
            (self.scale_shift_table + conditioning.adaln).to(x.dtype).unsqueeze(2).unbind(1)
        )  # six of (B, 1, W)
        shift, scale, gate, shift_ff, scale_ff, gate_ff = modulation
        h = layout.by_sequence(_modulated, self._norm(x), scale, shift)
        q, k, v = self.attn1.project(h, h)
        attended = attention(rotate(q, *turn), rotate(k, *turn), v, layer=layer)
        x = x + layout.by_sequence(torch.mul, self.attn1.merge(attended), gate)
        x = x + self._read_text(x, conditioning.text, text_mask, layout)
        h = layout.by_sequence(_modulated, self._norm(x), scale_ff, shift_ff)
        return x + layout.by_sequence(torch.mul, self.ff(h), gate_ff)

    def _norm(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=self.eps)

    def _read_text(self, x: Tensor, text: Tensor, mask: Tensor | None, layout: Layout) -> Tensor:
        """Not normalised before it (PixArt)."""
        q, *read = self.attn2.project(x, text)
        read += [] if mask is None else [mask]
        return self.attn2.merge(layout.by_sequence(_cross_attention, q, *read))


def _modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """(B, L, W) by (B, 1, W)."""
    return x * (1 + scale) + shift


def _cross_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """(B, L, N, D) to (B, S, N, D)."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


class OpenSoraT2V(nn.Module):
    """See the module. ``forward`` is the composition of the other methods."""

    def __init__(self, config: OpenSoraConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.pos_embed = PatchEmbed(config)
        self.transformer_blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.adaln_single = AdaLayerNormSingle(width)
        self.caption_projection = TextProjection(config.caption_channels, width)
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.proj_out = nn.Linear(width, config.patch_size**2 * config.out_channels)

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        text: Tensor,
        text_mask: Tensor | None = None,
        *,
        attention: SelfAttention = DENSE,
    ) -> Tensor:
        """Predict the noise.

        ``latents`` (B, C, T, H, W); ``timestep`` (B,), each sample's own; ``text`` (B, S, caption); ``text_mask``
        (B, S) bool, True = a token. Returns (B, out_channels, T, H, W).

        Raises: ValueError: latents that patches do not divide.
        """
        grid = self.config.grid(*latents.shape[2:])
        conditioning = self.conditioning(timestep, text)
        positions = self.positions(grid, latents.device)
        tokens = self.run_blocks(self.patchify(latents), positions, conditioning, text_mask, attention)
        return self.unpatchify(self.project(tokens, conditioning), grid)

    def patchify(self, latents: Tensor) -> Tensor:
        """(B, C, T, H, W) to tokens (B, L, W)."""
        return self.pos_embed(latents)  # type: ignore[no-any-return]

    def positions(self, grid: tuple[int, int, int], device: torch.device | str = "cpu") -> Tensor:
        """(t, row, column) of every token, (L, 3)."""
        return grid_positions(grid, device)

    def conditioning(self, timestep: Tensor, text: Tensor) -> Conditioning:
        """Embed timesteps (B,) and captions (B, S, caption)."""
        adaln, embedded = self.adaln_single(timestep)
        return Conditioning(adaln, embedded, self.caption_projection(text))

    def run_blocks(
        self,
        tokens: Tensor,
        positions: Tensor,
        conditioning: Conditioning,
        text_mask: Tensor | None,
        attention: SelfAttention = DENSE,
        layout: Layout = BATCH,
    ) -> Tensor:
        """All blocks on tokens (B, l, W), any run or subset of a sequence; ``positions`` (l, 3) or (B, l, 3).

        ``layout``: of packed tokens (1, l, W), which ``attention`` knows as well; other tensors are (B, ...) as ever.
        """
        config = self.config
        cos, sin = rotation(positions, config.attention_head_dim, config.interpolation_scale_thw)
        turn = Rotation(cos.to(tokens.dtype), sin.to(tokens.dtype))
        mask = None if text_mask is None else text_mask[:, None, None, :].bool()
        for layer, block in enumerate(self.transformer_blocks):
            tokens = block(tokens, turn, conditioning, mask, attention, layer, layout)
        return tokens

    def project(self, tokens: Tensor, conditioning: Conditioning, layout: Layout = BATCH) -> Tensor:
        """Tokens (B, l, W) to values of their patches (B, l, p * p * out_channels)."""
        table = (self.scale_shift_table + conditioning.embedded[:, None]).to(tokens.dtype)  # (B, 2, W)
        shift, scale = table.unsqueeze(2).unbind(1)
        normed = F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)
        return self.proj_out(layout.by_sequence(_modulated, normed, scale, shift))  # type: ignore[no-any-return]

    def unpatchify(self, values: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Values (B, L, p * p * out_channels) to (B, out_channels, T, H, W)."""
        (frames, rows, columns), p, out = grid, self.config.patch_size, self.config.out_channels
        patches = values.reshape(-1, frames, rows, columns, p, p, out)
        return torch.einsum("nthwpqc->ncthpwq", patches).reshape(-1, out, frames, rows * p, columns * p)
