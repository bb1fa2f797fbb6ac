"""Clips from first frames, many at once, as SVD's pipeline makes them: for measuring while training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.training.autoencoder import encode
from models.training.exvideo.autoencoder import decode, to_pixels
from models.training.exvideo.denoiser import SIGMA_MAX, USUAL_AUGMENTATION
from models.training.exvideo.export import Parts, scheduler
from models.training.exvideo.image_encoder import inputs
from models.training.vdit.clips import Clip

FPS = 8
"""Of playback."""


@dataclass(frozen=True, slots=True)
class Start:
    """The first noise level, and (Analytic-Init) mean (T, C, h, w) and mean variance of scaled latents; without, 0 and
    1 as published with SVD."""

    sigma: float = SIGMA_MAX
    mean: Tensor | None = None
    variance: float = 1.0

    def latents(self, noise: Tensor) -> Tensor:
        """What sampling begins with, (B, T, C, h, w)."""
        mean = 0.0 if self.mean is None else self.mean[: noise.shape[1]]
        return mean + noise * math.sqrt(self.sigma**2 + self.variance)


@torch.no_grad()
def sample(
    parts: Parts,
    firsts: Clip,
    buckets: Sequence[int],
    frames: int,
    *,
    steps: int = 25,
    guidance: float = 1.5,
    seed: int = 0,
    start: Start = Start(),
) -> list[Clip]:
    """Of first frames (B, H, W, 3), each with its motion bucket."""
    random = torch.Generator().manual_seed(seed)
    pixels = to_pixels(torch.from_numpy(np.ascontiguousarray(firsts)))
    noised = pixels + USUAL_AUGMENTATION * torch.randn(pixels.shape, generator=random)
    first, embeds = encode(parts.vae, noised), parts.encoder(inputs(pixels)).image_embeds[:, None]
    ids = torch.tensor([[FPS - 1, bucket, USUAL_AUGMENTATION] for bucket in buckets])
    ladder = scheduler(start.sigma)
    ladder.set_timesteps(steps)
    latents = start.latents(torch.randn((len(first), frames, *first.shape[1:]), generator=random))
    sides = first[:, None].expand(-1, frames, -1, -1, -1)
    for timestep in ladder.timesteps:
        scaled = ladder.scale_model_input(latents, timestep)
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            found = parts.unet(torch.cat([scaled, sides], 2), timestep, embeds, ids).sample.float()
            if guidance != 1.0:
                free = parts.unet(
                    torch.cat([scaled, torch.zeros_like(sides)], 2), timestep, torch.zeros_like(embeds), ids
                ).sample.float()
                found = free + guidance * (found - free)
        latents = ladder.step(found, timestep, latents).prev_sample
    return to_clips(parts.vae, latents)


def to_clips(vae: AutoencoderKLTemporalDecoder, latents: Tensor) -> list[Clip]:
    """Decoded, (T, H, W, 3) each."""
    frames = to_uint8(decode(vae, latents.flatten(0, 1) / vae.config.scaling_factor, latents.shape[1]))
    return list(frames.reshape(len(latents), -1, *frames.shape[1:]))


def to_uint8(pixels: Tensor) -> Clip:
    """(N, 3, H, W) in -1..1 to frames."""
    found: Clip = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return found


def sample_windows(
    parts: Parts, firsts: Clip, buckets: Sequence[int], frames: int, window: int, *, seed: int = 0, **how: Any
) -> list[Clip]:
    """Clips of ``window`` frames chained: each begins with the last frame of the one before."""
    found = [firsts[:, None]]
    while (made := sum(one.shape[1] for one in found)) < frames:
        clips = sample(parts, found[-1][:, -1], buckets, window, seed=seed + 1_000 * made, **how)
        found.append(np.stack(clips)[:, 1:])
    return list(np.concatenate(found, 1)[:, :frames])
