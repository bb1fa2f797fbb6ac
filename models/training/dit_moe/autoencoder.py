"""First stage: diffusers' AutoencoderKL learns to compress pictures of 64x64 to latents of 4x16x16.

At the end the latents are made white: mean 0 and covariance 1 over channels, by the 1x1 convolutions around them, so
that the scaling factor is 1 and flows begin and end with the same variance.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from models.training.average import follow
from models.training.dit_moe import pictures
from models.training.log import TrainingLog
from models.training.vdit.conv_muon import ConvMuon

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
KL_WEIGHT = 1e-4
INK = 4.0
"""How much more the error of pixels on and around a thing counts than that of the ground."""
EMA = 0.99


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
    kernels = {name: p for name, p in vae.named_parameters() if p.ndim == 4 and not _is_border(name)}
    others = [p for name, p in vae.named_parameters() if name not in kernels]
    muon, adam = ConvMuon(kernels.values(), lr), torch.optim.AdamW(others, lr=lr / 2, betas=(0.9, 0.98))
    average = copy.deepcopy(vae).requires_grad_(False)
    held_out = pictures.draw(128, 10**6, held_out=True).pixels
    log, recent = TrainingLog(out / "vae_log.jsonl"), list[float]()
    for step in range(steps):
        factor = min(1.0, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in adam.param_groups:
            group["lr"] = lr / 2 * factor
        recent.append(_backward(vae, pictures.draw(batch, 10_000_000 * seed + step).pixels))
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        muon.step(factor)
        adam.step()
        adam.zero_grad(set_to_none=True)
        follow(average, vae, min(EMA, (step + 1) / (step + 10)))
        if (step + 1) % 50 == 0:
            log.write(step=step + 1, loss=sum(recent) / len(recent))
            recent.clear()
            on_step(step + 1, steps)
        if (step + 1) % 300 == 0 or step + 1 == steps:
            log.write(step=step + 1, psnr=psnr(average, held_out))
    whiten(average, pictures.draw(512, 10**6 + 1).pixels)
    return average


def _is_border(name: str) -> bool:
    """Layers between pixels or latents and the inside."""
    return any(part in name for part in ("conv_in", "conv_out", "quant_conv"))


def _backward(vae: AutoencoderKL, pixels: Tensor) -> float:
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    posterior = vae.encode(pixels).latent_dist
    error = vae.decode(posterior.sample()).sample - pixels
    loss = (_weights(pixels) * (error.abs() + 2.0 * error.square())).mean()
    (loss + KL_WEIGHT * posterior.kl().mean() / 1024).backward()
    return float(loss.detach())


def _weights(pixels: Tensor) -> Tensor:
    """Of each pixel, (N, 1, H, W), mean 1."""
    ground = pixels[:, :, :1, :1]
    near = torch.nn.functional.max_pool2d((pixels - ground).abs().amax(1, keepdim=True), 3, 1, 1)
    weight = 1.0 + INK * (near > 0.1).float()
    return weight / weight.mean()


def start_certain(vae: AutoencoderKL) -> None:
    """Latents begin with a standard deviation of 0.05: with one of 1, the first minutes are spent on unlearning it."""
    half = vae.config["latent_channels"]
    with torch.no_grad():
        vae.quant_conv.weight[half:].zero_()
        vae.quant_conv.bias[half:].fill_(-6.0)


@torch.no_grad()
def whiten(vae: AutoencoderKL, pixels: Tensor) -> None:
    """Turn and scale the latents' channels so that over ``pixels`` they have mean 0 and covariance 1; what the decoder
    makes of them stays."""
    latents = encode(vae, pixels).transpose(0, 1).flatten(1).double()
    mean = latents.mean(1)
    values, vectors = torch.linalg.eigh(torch.cov(latents))
    white = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    back = torch.linalg.inv(white).float()
    half, inner, outer = len(mean), vae.quant_conv, vae.post_quant_conv
    kernel = outer.weight[:, :, 0, 0].clone()
    outer.bias.add_(kernel @ mean.float())
    outer.weight[:, :, 0, 0] = kernel @ back
    inner.weight[:half, :, 0, 0] = white.float() @ inner.weight[:half, :, 0, 0]
    inner.bias[:half] = white.float() @ (inner.bias[:half] - mean.float())
    inner.bias[half:] -= values.log().mean().float()


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """The likeliest latents, (N, 4, 16, 16)."""
    return torch.cat([vae.encode(part).latent_dist.mode() for part in torch.split(pixels, 64)])


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Pixels in -1..1, (N, 3, 64, 64)."""
    return torch.cat([vae.decode(part).sample.clamp(-1, 1) for part in torch.split(latents, 64)])


def psnr(vae: AutoencoderKL, pixels: Tensor) -> float:
    """Decibels of the likeliest reconstructions."""
    error = (decode(vae, encode(vae, pixels)) - pixels).square().mean((1, 2, 3))
    return float((10 * torch.log10(4.0 / error)).mean())
