"""First stage: diffusers' AutoencoderKL learns to compress pictures of 64x64 to latents of 4x16x16.

At the end the latents are made white: mean 0 and covariance 1 over channels, by the 1x1 convolutions around them, so
that the scaling factor is 1 and flows begin and end with the same variance.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from models.training.autoencoder import EMA, KernelOptimizers, decibels, encode, loss_of, start_certain, whiten
from models.training.average import follow
from models.training.dit_moe import pictures
from models.training.stages import log_of

CONFIG = {
    "block_out_channels": (16, 32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "sample_size": pictures.SIDE,
    "scaling_factor": 1.0,
    "mid_block_add_attention": False,
}


def train(
    out: Path,
    *,
    steps: int = 900,
    batch: int = 16,
    lr: float = 5e-3,
    seed: int = 1,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> AutoencoderKL:
    """Train; the log goes into ``out``."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(**CONFIG).to(memory_format=torch.channels_last)
    start_certain(vae)
    optimizers, average = KernelOptimizers(vae, lr), copy.deepcopy(vae).requires_grad_(False)
    held_out = pictures.draw(128, 10**6, held_out=True).pixels
    log, recent = log_of(out, "vae"), list[float]()
    for step in range(steps):
        recent.append(_backward(vae, pictures.draw(batch, 10_000_000 * seed + step).pixels))
        optimizers.step(step, steps)
        follow(average, vae, min(EMA, (step + 1) / (step + 10)))
        if (step + 1) % 50 == 0:
            log.write(step=step + 1, loss=sum(recent) / len(recent))
            recent.clear()
            on_step(step + 1, steps)
        if (step + 1) % 300 == 0 or step + 1 == steps:
            log.write(step=step + 1, psnr=psnr(average, held_out))
    whiten(average, encode(average, pictures.draw(512, 10**6 + 1).pixels), average.post_quant_conv)
    return average


def _backward(vae: AutoencoderKL, pixels: Tensor) -> float:
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    posterior = vae.encode(pixels).latent_dist
    error = vae.decode(posterior.sample()).sample - pixels
    loss = loss_of(pixels, error, posterior)
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Pixels in -1..1, (N, 3, 64, 64)."""
    return torch.cat([vae.decode(part).sample.clamp(-1, 1) for part in torch.split(latents, 64)])


def psnr(vae: AutoencoderKL, pixels: Tensor) -> float:
    """Decibels of the likeliest reconstructions."""
    return decibels(decode(vae, encode(vae, pixels)), pixels)
