"""Width-scaled bottleneck ResNet. Source: arXiv 1512.03385, stride in the 3x3; parameter names as in timm.

Differs from the official code: no dropout or stochastic depth, which only act in training.
"""

from __future__ import annotations

from torch import Tensor, nn

from models.families.dyn_perceiver.backbones import Backbone
from models.families.dyn_perceiver.config import ResNetConfig

EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a residual; four times as many channels leave as the middle has."""

    def __init__(self, c_in: int, middle: int, stride: int) -> None:
        super().__init__()
        c_out = middle * EXPANSION
        self.conv1 = nn.Conv2d(c_in, middle, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, c_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.act = nn.ReLU()
        self.downsample = (
            nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
            if stride != 1 or c_in != c_out
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, 4 * middle, H / stride, W / stride)."""
        y = self.act(self.bn1(self.conv1(x)))
        y = self.act(self.bn2(self.conv2(y)))
        out: Tensor = self.act(self.bn3(self.conv3(y)) + self.downsample(x))
        return out


def build_resnet(config: ResNetConfig) -> Backbone:
    """Stem (7x7 stride 2, 3x3 max pooling stride 2) and four stages."""
    stem_width = int(64 * config.width)
    middles = [int(width * config.width) for width in (64, 128, 256, 512)]
    leaving = [middle * EXPANSION for middle in middles]
    entering = [stem_width, *leaving[:3]]
    stages = [_stage(entering[i], middles[i], 1 if i == 0 else 2, config.depths[i]) for i in range(4)]
    stem = nn.Sequential(
        nn.Conv2d(3, stem_width, 7, 2, 3, bias=False), nn.BatchNorm2d(stem_width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    )
    return Backbone(
        stem=stem,
        stages=(stages[0], stages[1], stages[2], stages[3]),
        channels=(entering[0], entering[1], entering[2], entering[3], leaving[3]),
    )


def _stage(c_in: int, middle: int, stride: int, depth: int) -> nn.Sequential:
    rest = (Bottleneck(middle * EXPANSION, middle, 1) for _ in range(depth - 1))
    return nn.Sequential(Bottleneck(c_in, middle, stride), *rest)
