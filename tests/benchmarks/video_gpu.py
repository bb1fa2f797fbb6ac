"""Denoising steps at published sizes with random weights, on a GPU: dense and sparse, and what a search costs.

Open-Sora-Plan v1.2 at 29 frames of 1280x720 is our own network; Wan 2.1 T2V 1.3B at 81 frames of 832x480 is diffusers',
with our attention in place of its own in self-attention. One row, bfloat16. Each kind runs the same steps of a short
generation after one dense step; the seconds of a step are their mean, that of AdaSpa with its searches.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers import transformer_wan
from torch import Tensor

from models.families.vdit.config import OpenSoraConfig
from models.methods.attention.base import SelfAttention
from tests.benchmarks.common import markdown_table
from tests.benchmarks.gpu_steps import OSP_LATENT, TEXT_TOKENS, Network, osp, row
from tests.benchmarks.parts import Missing

STEPS = 10
OSP_KINDS = ("dense", "tile:2:6", "adaspa:0.8")
WAN_KINDS = ("dense", "tile:3:18", "adaspa:0.8")
WAN_1_3B: dict[str, Any] = {
    "num_attention_heads": 12, "attention_head_dim": 128, "num_layers": 30, "ffn_dim": 8960, "in_channels": 16,
    "out_channels": 16, "text_dim": 4096, "freq_dim": 256, "patch_size": (1, 2, 2),
}  # fmt: skip


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


def _osp(device: torch.device) -> Network:
    return osp(OpenSoraConfig(), OSP_LATENT, device)


def _wan(device: torch.device) -> Network:
    return wan(WAN_1_3B, (21, 60, 104), device)


def wan(config: dict[str, Any], latent: tuple[int, int, int], device: torch.device) -> Network:
    """Wan's transformer on latents of that size."""
    with torch.device(device):
        model = WanTransformer3DModel(**config).to(torch.bfloat16).eval().requires_grad_(False)
        latents = torch.randn(1, config["in_channels"], *latent, dtype=torch.bfloat16)
        timestep, text = torch.tensor([500]), torch.randn(1, TEXT_TOKENS, config["text_dim"], dtype=torch.bfloat16)
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
