"""Second stage: latents of drawn pictures, once, so that a step of the transformer costs the transformer alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.training.autoencoder import encode
from models.training.dit_moe import pictures

_SHARD = 2_000
_FIRST_SEED = 30_000_000


def make(
    out: Path,
    vae: AutoencoderKL,
    count: int,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Tensor, Tensor]:
    """Latents float16 (count, 4, 16, 16) and labels; shards that are in ``out`` already are read."""
    out.mkdir(parents=True, exist_ok=True)
    shards = []
    for number in range(-(-count // _SHARD)):
        shards.append(_shard(out / f"latents_{number:03d}.safetensors", vae, number))
        on_step(min(count, (number + 1) * _SHARD), count)
    latents, labels = (torch.cat([shard[name] for shard in shards])[:count] for name in ("latents", "labels"))
    return latents, labels


def _shard(path: Path, vae: AutoencoderKL, number: int) -> dict[str, Tensor]:
    if not path.is_file():
        drawn = pictures.draw(_SHARD, _FIRST_SEED + number)
        shard = {"latents": encode(vae, drawn.pixels).half(), "labels": drawn.labels}
        save_file(shard, path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)
    return load_file(path)
