"""Convolution with batch norm, and squeeze-and-excite. Feature maps are (B, C, H, W), channels last in memory.

Parameter names follow torchvision, as published checkpoints do: ``0`` convolution, ``1`` batch norm; ``fc1``, ``fc2``.
"""

from __future__ import annotations

from torch import Tensor, nn


def round_to_multiple(value: float, multiple: int = 8) -> int:
    """Nearest multiple, at least one of them, never more than 10% below ``value``. Source: MobileNet's width rule."""
    rounded = max(multiple, int(value + multiple / 2) // multiple * multiple)
    return rounded + multiple if rounded < 0.9 * value else rounded


class ConvNorm(nn.Sequential):
    """Convolution without bias, "same" padding for odd kernels, batch norm and, if given, an activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        activation: type[nn.Module] | None = nn.ReLU,
        norm_eps: float = 1e-5,
        norm_momentum: float = 0.1,
    ) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(out_channels, eps=norm_eps, momentum=norm_momentum),
        ]
        if activation is not None:
            layers.append(activation())
        super().__init__(*layers)


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the channel means."""

    def __init__(self, channels: int, squeezed: int, gate: type[nn.Module] = nn.Sigmoid) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.activation = nn.ReLU()
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        """Shape is kept: (B, C, H, W)."""
        mean = x.mean((2, 3), keepdim=True)
        gate: Tensor = self.gate(self.fc2(self.activation(self.fc1(mean))))
        return x * gate
