"""RegNet-Y. Source: Designing Network Design Spaces, arXiv 2003.13678; parameter names as in torchvision."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from models.families.dyn_perceiver.backbones import Backbone
from models.families.dyn_perceiver.config import RegNetConfig
from models.layers.conv import ConvNorm, SqueezeExcite


class YBlock(nn.Module):
    """Residual bottleneck: 1x1, grouped 3x3, squeeze-and-excite, 1x1."""

    def __init__(self, c_in: int, c_out: int, stride: int, config: RegNetConfig) -> None:
        super().__init__()
        self.proj = (
            ConvNorm(c_in, c_out, stride=stride, activation=None) if c_in != c_out or stride != 1 else nn.Identity()
        )
        self.f = nn.Sequential(
            OrderedDict(
                a=ConvNorm(c_in, c_out),
                b=ConvNorm(c_out, c_out, 3, stride=stride, groups=c_out // config.group_width),
                se=SqueezeExcite(c_out, round(config.squeeze_ratio * c_in)),
                c=ConvNorm(c_out, c_out, activation=None),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H / stride, W / stride), rounded up."""
        out: Tensor = self.f(x) + self.proj(x)
        return out.relu_()


def build_regnet(config: RegNetConfig) -> Backbone:
    """Raises: ValueError: a width is not a multiple of ``group_width``."""
    if any(width % config.group_width for width in config.widths):
        raise ValueError(f"widths {config.widths} must be multiples of group_width {config.group_width}")
    entering = (config.stem_width, *config.widths[:3])
    stages = [_stage(number, entering[number - 1], config) for number in (1, 2, 3, 4)]
    return Backbone(
        stem=ConvNorm(3, config.stem_width, 3, stride=2),
        stages=(stages[0], stages[1], stages[2], stages[3]),
        channels=(config.stem_width, *config.widths),
    )


def _stage(number: int, c_in: int, config: RegNetConfig) -> nn.Sequential:
    c_out, depth, stride = config.widths[number - 1], config.depths[number - 1], config.strides[number - 1]
    blocks = [YBlock(c_in, c_out, stride, config), *(YBlock(c_out, c_out, 1, config) for _ in range(depth - 1))]
    return nn.Sequential(OrderedDict((f"block{number}-{i}", block) for i, block in enumerate(blocks)))
