"""Third stage: clips rendered and encoded once, so that a step of the denoiser costs the denoiser alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.training.autoencoder import encode
from models.training.exvideo.autoencoder import to_pixels
from models.training.exvideo.scenes import Scene, render, sample_scene

LENGTH = 48
"""Frames of a stored clip: more than the longest that is trained on, so that it can begin anywhere."""
OF_A_PART = 800
_FIRST_SEED = 1_000


def make(
    out: Path,
    vae: AutoencoderKLTemporalDecoder,
    count: int,
    *,
    is_long: bool = False,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Tensor, list[Scene]]:
    """Latents (count, 48, 4, 8, 8), unscaled, and their scenes; parts that are in ``out`` already are read.

    ``is_long``: for the extension.

    Raises: ValueError: a part of another number of clips.
    """
    latents, scenes = [], []
    for part, first in enumerate(range(0, count, OF_A_PART)):
        rng = np.random.default_rng((_FIRST_SEED, is_long, part))
        of_part = [sample_scene(rng, is_long=is_long) for _ in range(min(OF_A_PART, count - first))]
        path = out / f"latents-{'long' if is_long else 'base'}-{part}.safetensors"
        if not path.is_file():
            made = [encode(vae, to_pixels(torch.from_numpy(render(scene, LENGTH)))) for scene in of_part]
            save_file({"latents": torch.stack(made)}, path.with_suffix(".part"))
            path.with_suffix(".part").rename(path)
        latents.append(load_file(path)["latents"])
        if (found := len(latents[-1])) != len(of_part):
            raise ValueError(f"{path} has {found} clips, not {len(of_part)}; remove it or choose another folder")
        scenes += of_part
        on_step(len(scenes), count)
    return torch.cat(latents), scenes
