"""Convolutions over (B, C, T, H, W) as a CPU does them fast; the numbers are those of the plain ones, but for rounding.

Measured in docs/benchmarks/video.md, part "Decoding". Legend: O output channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_SLOW_UNTIL = 20_480
"""Batch x channels x frames x rows up to which torch leaves a convolution of a batch of one to its own kernels, though
oneDNN's are three times as fast (torch 2.13, ``ConvParams::use_mkldnn``)."""


def conv3d(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """What ``conv(x)`` gives, by oneDNN where torch would not ask it."""
    if not _is_slow(conv, x):
        return conv(x)  # type: ignore[no-any-return]
    assert not isinstance(conv.padding, str), "of this family, paddings are numbers"
    return torch.mkldnn_convolution(x, conv.weight, conv.bias, conv.padding, conv.stride, conv.dilation, conv.groups)


def _is_slow(conv: nn.Conv3d, x: Tensor) -> bool:
    """1x1x1 are matrix products, which torch's own kernels do well."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_grad_enabled() or conv.kernel_size == (1, 1, 1):
        return False
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_onednn and x.shape[0] == 1 and x.shape[1] * x.shape[2] * x.shape[3] <= _SLOW_UNTIL


def upsampled_conv(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """What a (1, 3, 3) convolution with padding 1 gives of ``x`` with each pixel repeated twice along rows and columns.

    Of the three rows that the kernel sees, two are the same: each of the four output pixels of an input pixel is a 2x2
    convolution of the input, with sums of the kernel's weights. 16 multiplications instead of 36. (B, C, T, H, W)
    to (B, O, T, 2 H, 2 W).
    """
    height, width = x.shape[-2:]
    bias = None if conv.bias is None else conv.bias.repeat(4)
    y = F.conv3d(x, _of_four_pixels(conv.weight).flatten(0, 1), bias, padding=(0, 1, 1))
    parts = torch.unflatten(y, 1, (4, -1)).unbind(1)
    near = [  # the kernel of the upper left pixel begins a row and a column before it, that of the lower right at it
        part[..., top : top + height, left : left + width]
        for part, (top, left) in zip(parts, ((0, 0), (0, 1), (1, 0), (1, 1)), strict=True)
    ]
    rows = [torch.stack(pair, -1).flatten(-2) for pair in (near[:2], near[2:])]
    return torch.stack(rows, -2).flatten(-3, -2)


def _of_four_pixels(weight: Tensor) -> Tensor:
    """(O, C, 1, 3, 3) to (4, O, C, 1, 2, 2): upper left, upper right, lower left, lower right."""
    return torch.stack([part for rows in _folded(weight, -2) for part in _folded(rows, -1)])


def _folded(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Three taps along ``dim`` to two: of the first of a repeated pair, and of the second."""
    first, middle, last = torch.split(weight, 1, dim)
    return torch.cat([first, middle + last], dim), torch.cat([first + middle, last], dim)
