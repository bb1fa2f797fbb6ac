"""Width-scaled MobileNetV3-Large. Source: arXiv 1905.02244, table 1; parameter names as in torchvision.

The stem holds the first convolution and two inverted residuals; the last 1x1 convolution belongs to stage 4.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from models.families.dyn_perceiver.backbones import Backbone
from models.families.dyn_perceiver.config import MobileNetV3Config
from models.layers.conv import ConvNorm, SqueezeExcite, round_to_multiple

_conv_norm = partial(ConvNorm, norm_eps=1e-3, norm_momentum=0.01)


class Row(NamedTuple):
    """One line of the table: widths before scaling, kernel, squeeze-and-excite, hard-swish (else ReLU), stride."""

    c_in: int
    kernel: int
    expanded: int
    c_out: int
    squeeze: bool
    hard_swish: bool
    stride: int

    def scaled(self, width: float) -> Row:
        """The row with its three widths scaled and rounded to multiples of eight."""
        c_in, expanded, c_out = (round_to_multiple(c * width) for c in (self.c_in, self.expanded, self.c_out))
        return self._replace(c_in=c_in, expanded=expanded, c_out=c_out)


STEM = (Row(16, 3, 16, 16, False, False, 1), Row(16, 3, 64, 24, False, False, 2))
STAGES = (
    (Row(24, 3, 72, 24, False, False, 1), Row(24, 5, 72, 40, True, False, 2)),
    (Row(40, 5, 120, 40, True, False, 1), Row(40, 5, 120, 40, True, False, 1), Row(40, 3, 240, 80, False, True, 2)),
    (
        Row(80, 3, 200, 80, False, True, 1),
        Row(80, 3, 184, 80, False, True, 1),
        Row(80, 3, 184, 80, False, True, 1),
        Row(80, 3, 480, 112, True, True, 1),
        Row(112, 3, 672, 112, True, True, 1),
        Row(112, 5, 672, 160, True, True, 2),
    ),
    (Row(160, 5, 960, 160, True, True, 1), Row(160, 5, 960, 160, True, True, 1)),
)


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, squeeze-and-excite, 1x1 projection; ``row`` is already scaled."""

    def __init__(self, row: Row) -> None:
        super().__init__()
        activation = nn.Hardswish if row.hard_swish else nn.ReLU
        layers: list[nn.Module] = []
        if row.expanded != row.c_in:
            layers.append(_conv_norm(row.c_in, row.expanded, activation=activation))
        layers.append(
            _conv_norm(
                row.expanded, row.expanded, row.kernel, stride=row.stride, groups=row.expanded, activation=activation
            )
        )
        if row.squeeze:
            layers.append(SqueezeExcite(row.expanded, round_to_multiple(row.expanded // 4), nn.Hardsigmoid))
        layers.append(_conv_norm(row.expanded, row.c_out, activation=None))
        self.block = nn.Sequential(*layers)
        self.is_residual = row.stride == 1 and row.c_in == row.c_out

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H / stride, W / stride)."""
        y: Tensor = self.block(x)
        return y + x if self.is_residual else y


def build_mobilenet_v3(config: MobileNetV3Config) -> Backbone:
    """Stem and four stages; heads get a hidden layer of 1280 times the width."""
    first = round_to_multiple(16 * config.width)
    stem = nn.Sequential(_conv_norm(3, first, 3, stride=2, activation=nn.Hardswish), *_blocks(STEM, config.width))
    last = STAGES[3][-1].scaled(config.width).c_out
    final = _conv_norm(last, 6 * last, activation=nn.Hardswish)
    entering = [rows[0].scaled(config.width).c_in for rows in STAGES]
    stages = [nn.Sequential(*_blocks(rows, config.width)) for rows in STAGES[:3]]
    return Backbone(
        stem=stem,
        stages=(stages[0], stages[1], stages[2], nn.Sequential(*_blocks(STAGES[3], config.width), final)),
        channels=(entering[0], entering[1], entering[2], entering[3], 6 * last),
        head_width=round_to_multiple(1280 * config.width),
    )


def _blocks(rows: tuple[Row, ...], width: float) -> list[InvertedResidual]:
    return [InvertedResidual(row.scaled(width)) for row in rows]
