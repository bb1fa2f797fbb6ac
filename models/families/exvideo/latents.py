"""What is done to latents besides denoising: where they begin, what is done to them at the end, how they are decoded.

Legend: F frames, C channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKLTemporalDecoder
from torch import Tensor

from models.families.exvideo.overlap import border_of, ramp
from models.families.exvideo.shapes import CHUNK, CHUNK_STRIDE, spans


@dataclass(frozen=True)
class AnalyticInit:
    """Of the clean latents of many clips: their ``mean`` (F, C, h, w), and the mean ``variance`` of an element.

    Where sampling starts late, noise alone would be of a distribution that the network never saw there: some of the
    clip is still in it. The Gaussian that is nearest to the true one has this mean and this variance besides
    (arXiv:2406.15735, for SVD's noise that is added, not mixed).
    """

    mean: Tensor
    variance: float

    def start(self, noise: Tensor, sigma: float) -> Tensor:
        """From unit noise (1, F, C, h, w) to latents at a noise level. A shorter clip has the mean of the beginning."""
        mean, deviation = self.mean[: noise.shape[1]].to(noise), math.sqrt(sigma**2 + self.variance)
        return mean[None] + noise * deviation


def euler_step(latents: Tensor, output: Tensor, sigma: float, next_sigma: float) -> tuple[Tensor, Tensor]:
    """Latents at the next level, and the clean ones that the network's v stands for."""
    clean = latents / (sigma**2 + 1) - output * (sigma / math.sqrt(sigma**2 + 1))
    return latents + (latents - clean) / sigma * (next_sigma - sigma), clean


def normalised(latents: Tensor, contrast: float) -> Tensor:
    """Clips (1, F, C, h, w) each frame of which has the mean and the deviation of the whole, times ``contrast``."""
    mean, std = latents.mean(), latents.std()
    frame_mean = latents.mean(dim=(2, 3, 4), keepdim=True)
    frame_std = latents.std(dim=(2, 3, 4), keepdim=True)
    return ((latents - frame_mean) / frame_std * std + mean) * contrast


@dataclass
class Decoding:
    """A clip that is being decoded, eight frames at a time, four of which are also in the piece before and are blended.

    ``frames``: uint8 (F, H, W, 3), whole up to ``num_whole``. ``edge``: weighted pixels (4, 3, H, W) of those that the
    next piece has, too, and ``edge_weights`` (4,).
    """

    frames: Tensor
    num_done: int = 0
    edge: Tensor | None = None
    edge_weights: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """All that is held."""
        return [each for each in (self.frames, self.edge, self.edge_weights) if each is not None]


def decode_next(vae: AutoencoderKLTemporalDecoder, latents: Tensor, decoding: Decoding) -> Decoding:
    """With the next piece of clean latents (1, F, C, h, w); what was held before is left as it was, but for frames that
    were not whole."""
    total = latents.shape[1]
    span = spans(total, CHUNK, CHUNK_STRIDE)[decoding.num_done]
    pixels = decoded(vae, latents[0, span[0] : span[1]])
    counts = ramp(span, total, border_of(len(pixels), *pixels.shape[-2:])).to(pixels.device)
    weighted = pixels * counts.view(-1, 1, 1, 1)
    if decoding.edge is not None and decoding.edge_weights is not None:
        shared = len(decoding.edge)
        weighted[:shared] += decoding.edge
        counts[:shared] += decoding.edge_weights
    num_whole = len(pixels) if span[1] == total else CHUNK_STRIDE
    whole = weighted[:num_whole] / counts[:num_whole].view(-1, 1, 1, 1)
    decoding.frames[span[0] : span[0] + num_whole] = as_bytes(whole)
    edge, weights = weighted[num_whole:], counts[num_whole:]
    return Decoding(
        decoding.frames,
        decoding.num_done + 1,
        edge.clone() if len(edge) else None,
        weights.clone() if len(edge) else None,
    )


def decoded(vae: AutoencoderKLTemporalDecoder, latents: Tensor) -> Tensor:
    """Pixels (F, 3, H, W) in about -1..1 of latents (F, C, h, w), as the UNet has them."""
    scaled = 1 / vae.config.scaling_factor * latents.to(vae.dtype)
    pixels: Tensor = vae.decode(scaled, num_frames=len(latents)).sample
    return pixels.float()


def as_bytes(pixels: Tensor) -> Tensor:
    """uint8 (F, H, W, 3), on the CPU."""
    return ((pixels * 0.5 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()
