"""What the autoencoders of all nano models learn alike: diffusers' networks on little machines, in minutes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from models.training.vdit.conv_muon import ConvMuon

KL_WEIGHT = 1e-4
INK = 4.0
"""How much more the error of pixels on and around what is shown counts than that of the ground."""
EMA = 0.99


class KernelOptimizers:
    """Muon for the kernels between layers, AdamW for the rest; warm-up and cosine decay for both."""

    def __init__(self, vae: nn.Module, lr: float) -> None:
        kernels = {name: p for name, p in vae.named_parameters() if p.ndim >= 4 and not _is_border(name)}
        others = [p for name, p in vae.named_parameters() if name not in kernels]
        self._vae, self._lr = vae, lr / 2
        self._muon = ConvMuon(kernels.values(), lr)
        self._adam = torch.optim.AdamW(others, lr=lr / 2, betas=(0.9, 0.98))

    def step(self, step: int, steps: int) -> None:
        """Clip, update, clear."""
        factor = min(1.0, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in self._adam.param_groups:
            group["lr"] = self._lr * factor
        torch.nn.utils.clip_grad_norm_(self._vae.parameters(), 1.0)
        self._muon.step(factor)
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)


def _is_border(name: str) -> bool:
    """Layers between pixels or latents and the inside."""
    return any(part in name for part in ("conv_in", "conv_out", "quant_conv"))


def loss_of(pixels: Tensor, error: Tensor, posterior: Any) -> Tensor:
    """Of reconstructions, (N, 3, H, W): errors by ``INK``, and the information of each latent pixel."""
    numbers = math.prod(posterior.mean.shape[1:])
    shown: Tensor = (_weights(pixels) * (error.abs() + 2.0 * error.square())).mean()
    loss: Tensor = shown + KL_WEIGHT * posterior.kl().mean() / numbers
    return loss


def _weights(pixels: Tensor) -> Tensor:
    """Of each pixel, (N, 1, H, W), mean 1."""
    ground = pixels[:, :, :1, :1]
    near = torch.nn.functional.max_pool2d((pixels - ground).abs().amax(1, keepdim=True), 3, 1, 1)
    weight = 1.0 + INK * (near > 0.1).float()
    return weight / weight.mean()


def start_certain(vae: Any) -> None:
    """Latents begin with a standard deviation of 0.05: with one of 1, the first minutes are spent on unlearning it."""
    half = vae.config["latent_channels"]
    with torch.no_grad():
        vae.quant_conv.weight[half:].zero_()
        vae.quant_conv.bias[half:].fill_(-6.0)


@torch.no_grad()
def whiten(vae: Any, latents: Tensor, outer: nn.Conv2d) -> None:
    """Turn and scale the latents' channels so that ``latents`` (N, C, h, w) have mean 0 and covariance 1.

    ``outer``: the decoder's first convolution, which takes the way back.
    """
    channels = latents.transpose(0, 1).flatten(1).double()
    mean = channels.mean(1)
    values, vectors = torch.linalg.eigh(torch.cov(channels))
    white = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    back = torch.linalg.inv(white).float()
    half, inner, kernel = len(mean), vae.quant_conv, outer.weight.clone()
    assert outer.bias is not None
    outer.bias.add_(torch.einsum("ocij,c->o", kernel, mean.float()))
    outer.weight.copy_(torch.einsum("ocij,cd->odij", kernel, back))
    inner.weight[:half, :, 0, 0] = white.float() @ inner.weight[:half, :, 0, 0]
    inner.bias[:half] = white.float() @ (inner.bias[:half] - mean.float())
    inner.bias[half:] -= values.log().mean().float()


@torch.no_grad()
def encode(vae: Any, pixels: Tensor) -> Tensor:
    """The likeliest latents of (N, 3, H, W) in -1..1, unscaled."""
    return torch.cat([vae.encode(part).latent_dist.mode() for part in torch.split(pixels, 64)]).contiguous()


def decibels(made: Tensor, pixels: Tensor) -> float:
    """Peak signal to noise of pictures in -1..1, the mean over them."""
    error = (made - pixels).square().mean((1, 2, 3))
    return float((10 * torch.log10(4.0 / error)).mean())
