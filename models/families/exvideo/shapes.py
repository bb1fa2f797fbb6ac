"""Numbers that both the card and the networks need: blocks of the overlay, chunks of a decode. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CHUNK, CHUNK_STRIDE = 8, 4
"""Frames that are decoded at a time, and from one time to the next, as DiffSynth has them."""
WEIGHTS_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
"""Of the UNet and the autoencoder: the first one that is there is read."""
OVERLAY_FILES = ("exvideo.safetensors", "model.fp16.safetensors")
"""What ExVideo's weights are called beside ``model_index.json``: ours, and as published."""
STATISTICS_FILE = "analytic_init.safetensors"


def overlay_blocks(unet: Mapping[str, Any]) -> dict[str, int]:
    """Of each temporal transformer of a UNet, by its path in diffusers: its number in DiffSynth's list of blocks.

    That list is flat: a layer with attention is ten entries, one without is five, resampling is one or two.
    """
    down, up = unet["down_block_types"], unet["up_block_types"]
    layers = unet["layers_per_block"]
    layers = [layers] * len(down) if isinstance(layers, int) else list(layers)
    found: dict[str, int] = {}
    at = 0
    for number, kind in enumerate(down):
        for layer in range(layers[number]):
            if has_attention(kind):
                found[f"down_blocks.{number}.attentions.{layer}"] = at + 7
            at += 10 if has_attention(kind) else 5
        at += 2 if number < len(down) - 1 else 0
    found["mid_block.attentions.0"] = at + 7
    at += 13
    for number, kind in enumerate(up):
        for layer in range(layers[-1 - number] + 1):
            if has_attention(kind):
                found[f"up_blocks.{number}.attentions.{layer}"] = at + 8
            at += 10 if has_attention(kind) else 5
        at += 1 if number < len(up) - 1 else 0
    return found


def has_attention(kind: str) -> bool:
    """Whether a block of this class attends."""
    return kind.startswith("CrossAttn")


def vae_stride(vae: Mapping[str, Any]) -> int:
    """Pixels of a latent pixel's side."""
    return int(2 ** (len(vae["block_out_channels"]) - 1))


def spans(total: int, length: int, stride: int) -> list[tuple[int, int]]:
    """Half-open ranges of frames. The last one may be shorter, and begins no later than it has to."""
    found = [(0, min(length, total))]
    while found[-1][1] < total:
        start = found[-1][0] + stride
        found.append((start, min(start + length, total)))
    return found
