"""Convolution with batch norm, and squeeze-and-excite. Feature maps are (B, C, H, W), channels last in memory.

Parameter names follow torchvision, as published checkpoints do: ``0`` convolution, ``1`` batch norm; ``fc1``, ``fc2``.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


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
            layers.append(activation(inplace=True))
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
        squeezed = self.activation(_on_vectors(self.fc1, x.mean((2, 3))))
        gate: Tensor = self.gate(_on_vectors(self.fc2, squeezed))
        return x * gate[:, :, None, None]


class ResidualDepthwise(nn.Conv2d):
    """x + depthwise convolution of x with an odd kernel, "same" padding."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__(channels, channels, kernel, padding=kernel // 2, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """Shape is kept: (B, C, H, W)."""
        return super().forward(x) + x

    def folded(self) -> nn.Conv2d:
        """One plain convolution that does the same: the identity goes into the middle of the kernel."""
        kernel = self.kernel_size[0]
        plain = nn.Conv2d(self.in_channels, self.in_channels, kernel, padding=kernel // 2, groups=self.groups)
        plain.weight.data = self.weight.detach().clone()
        plain.weight.data[:, 0, kernel // 2, kernel // 2] += 1.0
        assert self.bias is not None
        assert plain.bias is not None
        plain.bias.data = self.bias.detach().clone()
        return plain


class Pointwise(nn.Module):
    """A 1x1 convolution run as a matrix product over pixels, which has far less fixed cost on small maps on a CPU."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight = nn.Parameter(conv.weight.detach().flatten(1).contiguous(), requires_grad=False)
        self.bias = conv.bias

    @staticmethod
    def fits(layer: nn.Conv2d) -> bool:
        """Whether this can stand in for ``layer``."""
        return layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.groups == 1

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W); no copy when memory is channels last."""
        return functional.linear(x.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)


def _on_vectors(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply a 1x1 convolution to (B, C) vectors."""
    return functional.linear(x, conv.weight.flatten(1), conv.bias)
