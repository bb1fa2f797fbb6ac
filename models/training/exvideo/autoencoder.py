"""First stage: diffusers' AutoencoderKLTemporalDecoder learns to compress frames of 32x32 to latents of 4x8x8."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder
from torch import Tensor

from models.training.average import follow
from models.training.exvideo.scenes import render, sample_scene
from models.training.log import TrainingLog
from models.training.vdit.conv_muon import ConvMuon

CONFIG: dict[str, Any] = {
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "layers_per_block": 1,
    "latent_channels": 4,
    "sample_size": 32,
    "scaling_factor": 1.0,
    "force_upcast": False,
}
KL_WEIGHT = 1e-4
INK = 4.0
"""How much more the error of pixels on and around the object counts than that of the ground."""
EMA = 0.99
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
    kernels = {name: p for name, p in vae.named_parameters() if p.ndim >= 4 and not _is_border(name)}
    others = [p for name, p in vae.named_parameters() if name not in kernels]
    muon, adam = ConvMuon(kernels.values(), lr), torch.optim.AdamW(others, lr=lr / 2, betas=(0.9, 0.98))
    average = copy.deepcopy(vae).requires_grad_(False)
    rng, held_out = np.random.default_rng(seed), sample_pixels(np.random.default_rng(10**6), 32, 4)
    log, recent = TrainingLog(out / "vae_log.jsonl"), list[float]()
    for step in range(steps):
        factor = min(1.0, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in adam.param_groups:
            group["lr"] = lr / 2 * factor
        recent.append(_backward(vae, sample_pixels(rng, CLIPS, FRAMES), FRAMES))
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        muon.step(factor)
        adam.step()
        adam.zero_grad(set_to_none=True)
        follow(average, vae, min(EMA, (step + 1) / (step + 10)))
        if step == int(WHITEN_AT * steps):
            whiten(vae, sample_pixels(np.random.default_rng(5), 256, 1))
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


def _is_border(name: str) -> bool:
    """Layers between pixels or latents and the inside."""
    return any(part in name for part in ("conv_in", "conv_out", "quant_conv"))


def _backward(vae: AutoencoderKLTemporalDecoder, pixels: Tensor, frames: int) -> float:
    posterior = vae.encode(pixels).latent_dist
    error = vae.decode(posterior.sample(), frames).sample - pixels
    loss = (_weights(pixels) * (error.abs() + 2.0 * error.square())).mean()
    (loss + KL_WEIGHT * posterior.kl().mean() / 256).backward()
    return float(loss.detach())


def _weights(pixels: Tensor) -> Tensor:
    """Of each pixel, (N, 1, H, W), mean 1."""
    ground = pixels[:, :, :1, :1]
    near = torch.nn.functional.max_pool2d((pixels - ground).abs().amax(1, keepdim=True), 3, 1, 1)
    weight = 1.0 + INK * (near > 0.1).float()
    return weight / weight.mean()


def start_certain(vae: AutoencoderKLTemporalDecoder) -> None:
    """Latents begin with a standard deviation of 0.05: with one of 1, the first minutes are spent on unlearning it."""
    half = vae.config["latent_channels"]
    with torch.no_grad():
        vae.quant_conv.weight[half:].zero_()
        vae.quant_conv.bias[half:].fill_(-6.0)


@torch.no_grad()
def whiten(vae: AutoencoderKLTemporalDecoder, pixels: Tensor) -> None:
    """Turn and scale the latents' channels so that over ``pixels`` they have mean 0 and covariance 1.

    The decoder's first convolution takes the way back, all but at the borders, where it pads with zeros.
    """
    latents = encode(vae, pixels).transpose(0, 1).flatten(1).double()
    mean = latents.mean(1)
    values, vectors = torch.linalg.eigh(torch.cov(latents))
    white = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    back = torch.linalg.inv(white).float()
    half, inner, outer = len(mean), vae.quant_conv, vae.decoder.conv_in
    kernel = outer.weight.clone()
    outer.bias.add_(torch.einsum("ocij,c->o", kernel, mean.float()))
    outer.weight.copy_(torch.einsum("ocij,cd->odij", kernel, back))
    inner.weight[:half, :, 0, 0] = white.float() @ inner.weight[:half, :, 0, 0]
    inner.bias[:half] = white.float() @ (inner.bias[:half] - mean.float())
    inner.bias[half:] -= values.log().mean().float()


@torch.no_grad()
def encode(vae: AutoencoderKLTemporalDecoder, pixels: Tensor) -> Tensor:
    """The likeliest latents."""
    return torch.cat([vae.encode(part).latent_dist.mode() for part in torch.split(pixels, 64)]).contiguous()


@torch.no_grad()
def decode(vae: AutoencoderKLTemporalDecoder, latents: Tensor, frames: int) -> Tensor:
    """Pixels in -1..1 of clips of ``frames`` each."""
    return torch.cat([vae.decode(part, len(part)).sample.clamp(-1, 1) for part in torch.split(latents, frames)])


def psnr(vae: AutoencoderKLTemporalDecoder, pixels: Tensor, frames: int) -> float:
    """Decibels of the likeliest reconstructions."""
    error = (decode(vae, encode(vae, pixels), frames) - pixels).square().mean((1, 2, 3))
    return float((10 * torch.log10(4.0 / error)).mean())
