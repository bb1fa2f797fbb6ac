"""Our tunable convolution beside others: the mixture of kernels written out, or an unofficial implementation.

The latter is not shipped here: it is a port of Huawei's code for MindSpore (``Source.url`` of the variant).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.contract import Parity, Variant
from models.families.tunable_restore.family import STRENGTHS
from models.families.tunable_restore.network import TunableConv2d, random_network

_CASES = ((12, 24, 4), (24, 24, 4), (40, 12, 2), (3, 5, 6))
"""Channels in and out, and base kernels."""


def compare(variant: Variant, folder: Path | None) -> Iterator[Parity]:
    """Random weights, three random pictures, each with strengths of its own, in double precision.

    Raises: FileNotFoundError: ``folder`` does not hold the code.
    """
    theirs = _Theirs(folder) if folder is not None else _written_out
    random = torch.Generator().manual_seed(0)
    for channels_in, channels_out, num_kernels in _CASES:
        ours = TunableConv2d(channels_in, channels_out, num_kernels, len(STRENGTHS)).double()
        nn.init.normal_(ours.biases, generator=random)
        x = torch.randn(3, channels_in, 9, 14, generator=random, dtype=torch.float64)
        strengths = torch.rand(3, len(STRENGTHS), generator=random, dtype=torch.float64)
        case = f"convolution {channels_in} to {channels_out}, {num_kernels} kernels"
        yield Parity(case, ours(x, strengths), theirs(ours, x, strengths), 1e-12)
    network = random_network(variant).double()
    pictures = torch.rand(3, 3, 24, 32, generator=random, dtype=torch.float64)
    strengths = torch.rand(3, len(STRENGTHS), generator=random, dtype=torch.float64)
    alone = [network(pictures[row : row + 1], strengths[row : row + 1]) for row in range(3)]
    yield Parity("network, rows at once and one by one", network(pictures, strengths), torch.cat(alone), 1e-12)


def _written_out(ours: TunableConv2d, x: Tensor, strengths: Tensor) -> Tensor:
    """The kernel of each picture is the sum of the base kernels times their shares, and so is its bias."""
    made = []
    for picture, strength in zip(x, strengths, strict=True):
        shares = ours.mix(strength)
        kernel = sum(share * one for share, one in zip(shares, ours.kernels, strict=True))
        bias = sum(share * one for share, one in zip(shares, ours.biases, strict=True))
        made.append(functional.conv2d(picture[None], kernel, bias, padding=1))
    return torch.cat(made)


class _Theirs:
    """Callable: the same by the other code, given our weights and our network of shares."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "tunable_conv.py").is_file():
            raise FileNotFoundError(f"{folder} holds no tunable_conv.py")
        sys.path.insert(0, str(folder))
        self._layer: Any = import_module("tunable_conv").TunableConv2d

    def __call__(self, ours: TunableConv2d, x: Tensor, strengths: Tensor) -> Tensor:
        num_kernels, channels_out, channels_in, *_ = ours.kernels.shape
        layer = self._layer(
            channels_in,
            channels_out,
            3,
            padding=1,
            bias=True,
            num_params=len(STRENGTHS),
            expand_params=num_kernels // len(STRENGTHS),
        )
        layer.weight.data, layer.bias.data, layer.mlp = ours.kernels.data[None], ours.biases.data[None], ours.mix
        made: Tensor = layer(x, strengths)
        return made
