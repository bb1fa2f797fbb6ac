"""Denoising steps at published sizes with random weights: dense and sparse, and what a search costs.

Open-Sora-Plan v1.2 is our own network. One row, bfloat16. Each kind runs the same steps of a short generation after one
dense step; the seconds of a step are their mean, that of AdaSpa with its searches. Needs torch and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.families.vdit.config import OpenSoraConfig
from models.families.vdit.transformer import OpenSoraT2V
from models.methods.attention.adaspa import AdaSpaAttention
from models.methods.attention.base import SelfAttention
from models.methods.attention.dense import DENSE
from models.methods.attention.memory import adaspa_config
from models.methods.attention.setting import AttentionKind, parse_attention
from models.methods.attention.tile_attention import TileAttention
from models.methods.attention.tile_mask import TileMask

OSP_LATENT = (8, 90, 160)
"""Of 29 frames of 1280x720."""
TEXT_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class Network:
    """``run``: one pass with an attention. ``grid``: of its tokens."""

    name: str
    grid: tuple[int, int, int]
    num_layers: int
    run: Callable[[SelfAttention], Tensor]


@torch.inference_mode()
def row(network: Network, kind: str, steps: int) -> dict[str, Any]:
    """Mean seconds of ``steps`` steps, after one that warms up."""
    network.run(DENSE)
    attention = _attention(kind, network, steps)
    taken, skipped = [], []
    for step in range(steps):
        if isinstance(attention, AdaSpaAttention):
            attention.begin_step(step)
        _wait()
        started_s = time.perf_counter()
        network.run(attention)
        _wait()
        taken.append(time.perf_counter() - started_s)
        skipped.append(_sparsity(attention))
    search_s = attention.search_seconds if isinstance(attention, AdaSpaAttention) else 0.0
    tokens = network.grid[0] * network.grid[1] * network.grid[2]
    return {
        "network": network.name,
        "attention": kind,
        "tokens": tokens,
        "s/step": round(sum(taken) / steps, 4),
        "least s/step": round(min(taken), 4),
        "skipped": round(sum(skipped) / steps, 3),
        "search share": round(search_s / sum(taken), 4),
    }


def _attention(kind: str, network: Network, steps: int) -> SelfAttention:
    setting = parse_attention(kind)
    if setting.kind is AttentionKind.TILE:
        mask = TileMask(num_frames=network.grid[0], references=setting.references)
        return TileAttention([mask] * network.num_layers, network.grid)
    if setting.kind is AttentionKind.ADASPA:
        frames, height, width = network.grid
        return AdaSpaAttention(adaspa_config(setting, steps, frames * height * width))
    return DENSE


def _sparsity(attention: SelfAttention) -> float:
    return attention.achieved_sparsity if isinstance(attention, AdaSpaAttention | TileAttention) else 0.0


def osp(config: OpenSoraConfig, latent: tuple[int, int, int], device: torch.device) -> Network:
    """Open-Sora-Plan's transformer on latents of that size."""
    with torch.device(device):
        model = OpenSoraT2V(config).to(torch.bfloat16).eval().requires_grad_(False)
        latents = torch.randn(1, config.in_channels, *latent, dtype=torch.bfloat16)
        timestep, text = (
            torch.tensor([500]),
            torch.randn(1, TEXT_TOKENS, config.caption_channels, dtype=torch.bfloat16),
        )
    return Network(
        name="Open-Sora-Plan v1.2",
        grid=config.grid(*latent),
        num_layers=config.num_layers,
        run=lambda attention: model(latents, timestep, text, attention=attention),
    )


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
