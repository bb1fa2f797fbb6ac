"""First stage: diffusers' AutoencoderKLTemporalDecoder learns to compress frames of 32x32 to latents of 4x8x8."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder
from torch import Tensor

from models.training.autoencoder import EMA, KernelOptimizers, decibels, encode, loss_of, start_certain, whiten
from models.training.average import follow
from models.training.exvideo.scenes import render, sample_scene
from models.training.stages import log_of

CONFIG: dict[str, Any] = {
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "layers_per_block": 1,
    "latent_channels": 4,
    "sample_size": 32,
    "scaling_factor": 1.0,
    "force_upcast": False,
}
CLIPS, FRAMES = 5, 3
"""Of a batch."""
WHITEN_AT = 0.7
"""Share of the steps after which the latents are made white; the rest heals what that breaks at the borders."""


def train(
    out: Path,
    *,
    steps: int = 1_000,
    lr: float = 5e-3,
    seed: int = 1,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> AutoencoderKLTemporalDecoder:
    """Train; the log goes into ``out``."""
    torch.manual_seed(seed)
    vae = AutoencoderKLTemporalDecoder(**CONFIG)
    vae.encoder.to(memory_format=torch.channels_last)
    start_certain(vae)
    optimizers, average = KernelOptimizers(vae, lr), copy.deepcopy(vae).requires_grad_(False)
    rng, held_out = np.random.default_rng(seed), sample_pixels(np.random.default_rng(10**6), 32, 4)
    log, recent = log_of(out, "vae"), list[float]()
    for step in range(steps):
        recent.append(_backward(vae, sample_pixels(rng, CLIPS, FRAMES), FRAMES))
        optimizers.step(step, steps)
        follow(average, vae, min(EMA, (step + 1) / (step + 10)))
        if step == int(WHITEN_AT * steps):
            # But at the borders, where it pads with zeros, the decoder's first convolution takes the way back.
            whiten(vae, encode(vae, sample_pixels(np.random.default_rng(5), 256, 1)), vae.decoder.conv_in)
            average.load_state_dict(vae.state_dict())
        if (step + 1) % 50 == 0:
            log.write(step=step + 1, loss=sum(recent) / len(recent))
            recent.clear()
            on_step(step + 1, steps)
        if (step + 1) % 200 == 0 or step + 1 == steps:
            log.write(step=step + 1, psnr=psnr(average, held_out, 4))
    return average


def sample_pixels(rng: np.random.Generator, clips: int, frames: int) -> Tensor:
    """(N*T, 3, 32, 32) in -1..1, of any combination."""
    drawn = np.concatenate([render(sample_scene(rng, held_out=None), frames) for _ in range(clips)])
    return to_pixels(torch.from_numpy(drawn))


def to_pixels(frames: Tensor) -> Tensor:
    """uint8 (N, H, W, 3) to (N, 3, H, W) in -1..1."""
    return (frames.permute(0, 3, 1, 2).float() / 127.5 - 1.0).contiguous(memory_format=torch.channels_last)


def _backward(vae: AutoencoderKLTemporalDecoder, pixels: Tensor, frames: int) -> float:
    posterior = vae.encode(pixels).latent_dist
    error = vae.decode(posterior.sample(), frames).sample - pixels
    loss = loss_of(pixels, error, posterior)
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())


@torch.no_grad()
def decode(vae: AutoencoderKLTemporalDecoder, latents: Tensor, frames: int) -> Tensor:
    """Pixels in -1..1 of clips of ``frames`` each."""
    return torch.cat([vae.decode(part, len(part)).sample.clamp(-1, 1) for part in torch.split(latents, frames)])


def psnr(vae: AutoencoderKLTemporalDecoder, pixels: Tensor, frames: int) -> float:
    """Decibels of the likeliest reconstructions."""
    return decibels(decode(vae, encode(vae, pixels), frames), pixels)
