"""What is done to clean pictures, and what is to come of it at each strength: a parametric multi-loss of our own.

Legend: B pictures; float (B, 3, H, W) in 0..1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

BLUR_SIGMA = 1.5
"""Pixels. ``sharpen`` undoes a Gaussian blur of this width, which is known and always the same."""


def blurred(pictures: Tensor, sigma: float = BLUR_SIGMA) -> Tensor:
    """Gaussian blur; the border is repeated."""
    radius = math.ceil(10 * sigma / 3)
    bell = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = (bell / bell.sum()).expand(3, 1, 1, -1)
    wide = functional.pad(pictures, [radius] * 4, mode="replicate")
    return functional.conv2d(functional.conv2d(wide, kernel, groups=3), kernel.transpose(2, 3), groups=3)


def as_bytes(pictures: Tensor) -> Tensor:
    """Rounded to what eight bits can hold, as pictures arrive."""
    return (pictures.clamp(0, 1) * 255).round() / 255


def objectives(sharp: Tensor, soft: Tensor, given: Tensor) -> Tensor:
    """One target for each corner of the square of strengths, (4, B, 3, H, W).

    In the order of ``weights``: the picture as it was given, without its noise, with its noise and the lost detail,
    and as it was before anything was done to it. ``sharp``: that one. ``soft``: after the blur. ``given``: after the
    noise.
    """
    return torch.stack((given, soft, given + sharp - soft, sharp))


def weights(denoise: float, sharpen: float) -> Tensor:
    """How much each objective counts, (4,); they add up to 1, and at a corner one is alone."""
    keep, soften = 1 - denoise, 1 - sharpen
    return torch.tensor([keep * soften, denoise * soften, keep * sharpen, denoise * sharpen], dtype=torch.float32)


def multi_loss(made: Tensor, targets: Tensor, shares: Tensor) -> Tensor:
    """Mean over the pictures of the logarithm of what could be better, a scalar.

    Our own, after the idea of the paper's abstract that the strengths mix the objectives. A sum of squared errors, each
    weighted by the strengths, is the squared error from the weighted mean of the targets, plus what they differ among
    themselves, which no network can change and which is left out. (Absolute errors would not do: their best answer
    jumps from one target to the next when a weight passes a half.) The logarithm lets strong noise and weak noise count
    alike, as decibels do.
    """
    wanted = torch.einsum("o,obchw->bchw", shares, targets)
    return torch.log((made - wanted).square().mean((1, 2, 3)) + _FLOOR).mean()


_FLOOR = 3e-5
"""Squared error below which little is won: 45 dB."""
