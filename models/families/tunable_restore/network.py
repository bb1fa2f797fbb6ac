"""Tunable convolutions, the network made of them, and what the host calls.

After Maggioni et al., "Tunable Convolutions with Parametric Multi-Loss Optimization" (CVPR 2023), of which only the
abstract was at hand: a kernel and a bias are mixtures of several base kernels and biases, and a small network makes the
shares of the mixture from the strengths that the caller asks for. That mixture is the known equation of such layers,
and was checked against unofficial code (``oracle``); the network is ours.

Legend: B pictures, S strengths of each (in 0..1), P base kernels; feature maps are (B, C, H, W).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.checkpoint import load_into, read_weights
from models.contract import Point, Variant
from models.families.tunable_restore.family import STRENGTHS

STRIDE = 4
"""Sides are padded to a multiple of this."""


class TunableConv2d(nn.Module):
    """A 3x3 convolution with "same" padding whose kernel depends on the strengths.

    ``kernels``: (P, out, in, 3, 3). ``biases``: (P, out). ``mix``: strengths (B, S) -> shares (B, P), of any sign and
    sum.
    """

    def __init__(self, in_channels: int, out_channels: int, num_kernels: int, num_strengths: int) -> None:
        super().__init__()
        plain = [nn.Conv2d(in_channels, out_channels, 3) for _ in range(num_kernels)]
        self.kernels = nn.Parameter(torch.stack([conv.weight.detach() for conv in plain]))
        self.biases = nn.Parameter(torch.zeros(num_kernels, out_channels))
        self.mix = nn.Sequential(nn.Linear(num_strengths, 8), nn.GELU(), nn.Linear(8, num_kernels))

    def forward(self, x: Tensor, strengths: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H, W). ``strengths``: one row for each picture, or one for all of them."""
        shares = self.mix(strengths)
        kernel = torch.einsum("bp,poihw->boihw", shares, self.kernels)
        bias = shares @ self.biases
        if len(strengths) == 1:
            return functional.conv2d(x, kernel[0], bias[0], padding=1)
        rows, size = len(x), x.shape[2:]
        # Rows as groups of one convolution: each has its own kernel, and the work is that of a plain one.
        out = functional.conv2d(x.reshape(1, -1, *size), kernel.flatten(0, 1), bias.flatten(), padding=1, groups=rows)
        return out.view(rows, -1, *size)


class Block(nn.Module):
    """A residual of two convolutions, the second one tunable."""

    def __init__(self, channels: int, num_kernels: int, num_strengths: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = TunableConv2d(channels, channels, num_kernels, num_strengths)

    def forward(self, x: Tensor, strengths: Tensor) -> Tensor:
        """Shape is kept."""
        added: Tensor = self.second(functional.relu(self.first(x)), strengths)
        return x + added


class Network(nn.Module):
    """A small U of residual blocks at a half and a quarter of the size, and what they add to the picture.

    ``widths``: channels at a half and at a quarter. ``depths``: blocks on the way down, at the bottom, on the way up.
    """

    def __init__(self, widths: tuple[int, int], depths: tuple[int, int, int], num_kernels: int) -> None:
        super().__init__()
        tunable = (num_kernels, len(STRENGTHS))
        half, quarter = widths
        self.head = TunableConv2d(12, half, *tunable)
        self.down = nn.ModuleList(Block(half, *tunable) for _ in range(depths[0]))
        self.shrink = nn.Conv2d(half, quarter, 2, stride=2)
        self.bottom = nn.ModuleList(Block(quarter, *tunable) for _ in range(depths[1]))
        self.grow = nn.Conv2d(quarter, 4 * half, 1)
        self.up = nn.ModuleList(Block(half, *tunable) for _ in range(depths[2]))
        self.tail = TunableConv2d(half, 12, *tunable)

    def forward(self, pictures: Tensor, strengths: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..1, sides multiples of ``STRIDE`` -> the same, not clamped. ``strengths``: (B or 1, S)."""
        x = self.head(functional.pixel_unshuffle(pictures, 2), strengths)
        for block in self.down:
            x = block(x, strengths)
        below = self.shrink(x)
        for block in self.bottom:
            below = block(below, strengths)
        x = x + functional.pixel_shuffle(self.grow(below), 2)
        for block in self.up:
            x = block(x, strengths)
        added = functional.pixel_shuffle(self.tail(x, strengths), 2)
        # 0 where all strengths are, whatever the kernels say, so that the picture comes back as it was; 1 where any
        # one is.
        share = 1 - (1 - strengths).prod(1)
        return pictures + share[:, None, None, None] * added


def random_network(variant: Variant, seed: int = 0) -> Network:
    """Freshly initialised weights, the same for the same seed; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(**variant.config["network"])


def build(variant: Variant, device: str | torch.device = "cpu", *, random_weights: bool = False) -> Network:
    """The network with the weights of ``variant.weights``, or random ones (seed 0) where that is asked for.

    Raises: ValueError: there are no weights, or they do not fit.
    """
    network = random_network(variant)
    if not random_weights:
        if variant.weights is None:
            raise ValueError(f"{variant.id} has no weights; give a folder ({variant.id}=FOLDER)")
        # Kept in half precision, run in single.
        load_into(network, {name: tensor.float() for name, tensor in read_weights(variant.weights).items()})
    return network.eval().requires_grad_(False).to(device)


class Runner:
    """See ``models.contract.Unary``: pictures of one size, and the strengths of each."""

    def __init__(self, network: Network, variant: Variant) -> None:
        self.device = network.shrink.weight.device
        self._network = network

    @torch.inference_mode()
    def forward(self, batch: Tensor, points: Sequence[Point]) -> Mapping[str, Tensor]:
        """uint8 (B, H, W, 3) to uint8 of the same shape."""
        strengths = torch.tensor([[float(point[name]) for name in STRENGTHS] for point in points], device=self.device)
        pictures = batch.to(self.device).permute(0, 3, 1, 2).float() / 255
        made = self._network(padded(pictures), strengths)[..., : batch.shape[1], : batch.shape[2]]
        return {"image": (made.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()}


def padded(pictures: Tensor) -> Tensor:
    """Sides brought to multiples of ``STRIDE`` by repeating the last row and column."""
    height, width = pictures.shape[-2:]
    return functional.pad(pictures, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")
