"""Denoising steps at published sizes with random weights, on a GPU: dense and sparse, and what a search costs.

Open-Sora-Plan v1.2 at 29 frames of 1280x720 is our own network; Wan 2.1 T2V 1.3B at 81 frames of 832x480 is diffusers',
with our attention in place of its own in self-attention. One row, bfloat16. Each kind runs the same steps of a short
generation after one dense step; the seconds of a step are their mean, that of AdaSpa with its searches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers import transformer_wan
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
from tests.benchmarks.common import markdown_table
from tests.benchmarks.parts import Missing

STEPS = 10
OSP_KINDS = ("dense", "tile:2:6", "adaspa:0.8")
WAN_KINDS = ("dense", "tile:3:18", "adaspa:0.8")
WAN_1_3B: dict[str, Any] = {
    "num_attention_heads": 12, "attention_head_dim": 128, "num_layers": 30, "ffn_dim": 8960, "in_channels": 16,
    "out_channels": 16, "text_dim": 4096, "freq_dim": 256, "patch_size": (1, 2, 2),
}  # fmt: skip
_TEXT_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class Network:
    """``run``: one pass with an attention. ``grid``: of its tokens."""

    name: str
    grid: tuple[int, int, int]
    num_layers: int
    run: Callable[[SelfAttention], Tensor]


def measure(name: str, *, quick: bool) -> dict[str, Any]:
    """Rows by network. Raises: Missing: no GPU."""
    if not torch.cuda.is_available():
        raise Missing("there is no CUDA device here; run it where torch sees one")
    steps = 4 if quick else STEPS
    found = []
    for make, kinds in ((_osp, OSP_KINDS), (_wan, WAN_KINDS)):
        network = make(torch.device("cuda"))
        found += [row(network, kind, steps) for kind in kinds]
        del network
        torch.cuda.empty_cache()
    return {"gpu": torch.cuda.get_device_name(), "rows": found}


def lines(document: dict[str, Any]) -> list[str]:
    """A table."""
    table = document["rows"]
    return [document["gpu"], "", markdown_table(list(table[0]), [list(each.values()) for each in table])]


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


def _osp(device: torch.device) -> Network:
    return osp(OpenSoraConfig(), (8, 90, 160), device)


def _wan(device: torch.device) -> Network:
    return wan(WAN_1_3B, (21, 60, 104), device)


def osp(config: OpenSoraConfig, latent: tuple[int, int, int], device: torch.device) -> Network:
    """Open-Sora-Plan's transformer on latents of that size."""
    with torch.device(device):
        model = OpenSoraT2V(config).to(torch.bfloat16).eval().requires_grad_(False)
        latents = torch.randn(1, config.in_channels, *latent, dtype=torch.bfloat16)
        timestep, text = (
            torch.tensor([500]),
            torch.randn(1, _TEXT_TOKENS, config.caption_channels, dtype=torch.bfloat16),
        )
    return Network(
        name="Open-Sora-Plan v1.2",
        grid=config.grid(*latent),
        num_layers=config.num_layers,
        run=lambda attention: model(latents, timestep, text, attention=attention),
    )


def wan(config: dict[str, Any], latent: tuple[int, int, int], device: torch.device) -> Network:
    """Wan's transformer on latents of that size."""
    with torch.device(device):
        model = WanTransformer3DModel(**config).to(torch.bfloat16).eval().requires_grad_(False)
        latents = torch.randn(1, config["in_channels"], *latent, dtype=torch.bfloat16)
        timestep, text = torch.tensor([500]), torch.randn(1, _TEXT_TOKENS, config["text_dim"], dtype=torch.bfloat16)
    frames, height, width = latent

    def run(attention: SelfAttention) -> Tensor:
        with _self_attention(attention, config["num_layers"]):
            output: Tensor = model(latents, timestep, text, return_dict=False)[0]
        return output

    grid = (frames, height // 2, width // 2)
    return Network(name="Wan 2.1 T2V 1.3B", grid=grid, num_layers=config["num_layers"], run=run)


@contextmanager
def _self_attention(attention: SelfAttention, num_layers: int) -> Iterator[None]:
    """Wan's blocks ask one function for all attention, first for a layer's self-attention, then for its text."""
    usual, calls = transformer_wan.dispatch_attention_fn, iter(range(2 * num_layers))

    def ours(q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Any:
        layer, is_cross = divmod(next(calls), 2)
        return usual(q, k, v, **how) if is_cross else attention(q, k, v, layer=layer)

    transformer_wan.dispatch_attention_fn = ours
    try:
        yield
    finally:
        transformer_wan.dispatch_attention_fn = usual


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
