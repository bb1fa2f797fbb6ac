"""Layers of the CausalVAE, under the names by which the published config.json asks for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.families.vdit.cpu_conv3d import conv3d, upsampled_conv


def Norm(groups: int, width: int) -> nn.GroupNorm:
    """Group normalisation as everywhere in this model."""
    return nn.GroupNorm(groups, width, eps=1e-6)


def _per_frame(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Run an image layer on every frame of (B, C, T, H, W)."""
    batch, _, frames = x.shape[:3]
    y = layer(x.transpose(1, 2).flatten(0, 1))
    return y.reshape(batch, frames, *y.shape[1:]).transpose(1, 2)


def _repeat_first(x: Tensor, count: int) -> Tensor:
    """Put ``count`` copies of the first frame before it."""
    return x if count == 0 else torch.cat([x[:, :, :1].expand(-1, -1, count, -1, -1), x], dim=2)


def _twice_the_frames(x: Tensor) -> Tensor:
    """(B, C, k + 1, H, W) to (B, C, 2k + 1, H, W): all but the first, each at a quarter of the way to its neighbours.

    As ``F.interpolate`` does it, which takes four times as long on a CPU along frames alone.
    """
    if x.shape[2] == 1:
        return x
    later = x[:, :, 1:]
    wider = torch.cat([later[:, :, :1], later, later[:, :, -1:]], dim=2)
    pair = [torch.lerp(later, neighbour, 0.25) for neighbour in (wider[:, :, :-2], wider[:, :, 2:])]
    return torch.cat([x[:, :, :1], torch.stack(pair, 3).flatten(2, 3)], dim=2)


def _activated(x: Tensor) -> Tensor:
    """SiLU of what nobody else needs: in its place where no gradient wants it."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


class Conv2d(nn.Conv2d):
    """A convolution of each frame by itself."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W)."""
        return _per_frame(super().forward, x)


class CausalConv3d(nn.Module):
    """A convolution that sees the past only: the first frame is repeated before itself."""

    def __init__(self, chan_in: int, chan_out: int, kernel_size: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.time_pad = kernel_size - 1
        self.conv = nn.Conv3d(chan_in, chan_out, kernel_size, stride=stride, padding=(0, padding, padding))
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W)."""
        return conv3d(self.conv, _repeat_first(x, self.time_pad))


class ResnetBlock(nn.Module):
    """Norm, SiLU, convolution, twice, and a skip."""

    def __init__(self, chan_in: int, chan_out: int, groups: int, conv: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.norm1 = Norm(groups, chan_in)
        self.conv1 = conv(chan_in, chan_out, 3, padding=1)
        self.norm2 = Norm(groups, chan_out)
        self.conv2 = conv(chan_out, chan_out, 3, padding=1)
        if chan_in != chan_out:
            self.nin_shortcut = conv(chan_in, chan_out, 1, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W)."""
        h = self.conv1(_activated(self.norm1(x)))
        h = self.conv2(_activated(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)  # type: ignore[no-any-return]


class ResnetBlock2D(ResnetBlock):
    """Of frames by themselves; norms, too."""

    def __init__(self, chan_in: int, chan_out: int, groups: int) -> None:
        super().__init__(chan_in, chan_out, groups, nn.Conv2d)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W)."""
        return _per_frame(super().forward, x)


class ResnetBlock3D(ResnetBlock):
    """Of frames and what came before; norms over the whole clip."""

    def __init__(self, chan_in: int, chan_out: int, groups: int) -> None:
        super().__init__(chan_in, chan_out, groups, CausalConv3d)


class AttnBlock3D(nn.Module):
    """One-head attention within each frame.

    ``mixes_frames``: the first published version folds (B, C, T) to (B T, C) without moving T forward, which mixes
    channels of different frames; its checkpoints were trained with that.
    """

    def __init__(self, width: int, groups: int, *, mixes_frames: bool = False) -> None:
        super().__init__()
        self.mixes_frames = mixes_frames
        self.norm = Norm(groups, width)
        self.q = CausalConv3d(width, width, 1)
        self.k = CausalConv3d(width, width, 1)
        self.v = CausalConv3d(width, width, 1)
        self.proj_out = CausalConv3d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W)."""
        h = self.norm(x)
        q, k, v = (self._fold(part(h)) for part in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v)  # (B T, H W, C)
        return x + self.proj_out(self._unfold(y, x))  # type: ignore[no-any-return]

    def _fold(self, x: Tensor) -> Tensor:
        if not self.mixes_frames:
            x = x.transpose(1, 2)
        batch, channels, frames, height, width = (
            x.shape if self.mixes_frames else (x.shape[0], x.shape[2], x.shape[1], *x.shape[3:])
        )
        return x.reshape(batch * frames, channels, height * width).transpose(1, 2)

    def _unfold(self, y: Tensor, like: Tensor) -> Tensor:
        batch, channels, frames, height, width = like.shape
        y = y.transpose(1, 2)
        if self.mixes_frames:
            return y.reshape(batch, channels, frames, height, width)
        return y.reshape(batch, frames, channels, height, width).transpose(1, 2)


class AttnBlock3DMixed(AttnBlock3D):
    """The first published version."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__(width, groups, mixes_frames=True)


class Downsample(nn.Module):
    """Half the height and width, each frame by itself."""

    def __init__(self, chan_in: int, chan_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(chan_in, chan_out, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W)."""
        return _per_frame(lambda frames: self.conv(F.pad(frames, (0, 1, 0, 1))), x)


class _SpaceConv(nn.Module):
    """The (1, 3, 3) convolution of the spatial layers, under the name that a causal one has."""

    def __init__(self, chan_in: int, chan_out: int, stride: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(chan_in, chan_out, (1, 3, 3), stride=(1, stride, stride), padding=(0, padding, padding))
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return conv3d(self.conv, x)


class SpatialDownsample2x(nn.Module):
    """Half the height and width."""

    def __init__(self, chan_in: int, chan_out: int) -> None:
        super().__init__()
        self.conv = _SpaceConv(chan_in, chan_out, 2, 0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W)."""
        return self.conv(F.pad(x, (0, 1, 0, 1, 0, 0)))  # type: ignore[no-any-return]


class SpatialUpsample2x(nn.Module):
    """Twice the height and width."""

    def __init__(self, chan_in: int, chan_out: int) -> None:
        super().__init__()
        self.conv = _SpaceConv(chan_in, chan_out, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W)."""
        if x.device.type == "cpu":
            return upsampled_conv(self.conv.conv, x)
        return self.conv(F.interpolate(x, scale_factor=(1.0, 2.0, 2.0), mode="nearest"))  # type: ignore[no-any-return]


class TimeDownsample2x(nn.Module):
    """Half the frames, the first one apart, by averaging."""

    def __init__(self, chan_in: int, chan_out: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, 2k + 1, H, W) to (B, C, k + 1, H, W)."""
        return F.avg_pool3d(_repeat_first(x, 2), (3, 1, 1), stride=(2, 1, 1))


class TimeUpsample2x(nn.Module):
    """Twice the frames, the first one apart, by interpolating."""

    def __init__(self, chan_in: int, chan_out: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, k + 1, H, W) to (B, C, 2k + 1, H, W)."""
        return _twice_the_frames(x)


class TimeDownsampleRes2x(nn.Module):
    """Half the frames: a learnt mix of averaging and a convolution."""

    def __init__(self, chan_in: int, chan_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(chan_in, chan_out, 3, stride=(2, 1, 1), padding=(0, 1, 1))
        self.mix_factor = nn.Parameter(torch.tensor([2.0]))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, 2k + 1, H, W) to (B, C, k + 1, H, W)."""
        alpha = torch.sigmoid(self.mix_factor)
        x = _repeat_first(x, 2)
        return alpha * F.avg_pool3d(x, (3, 1, 1), stride=(2, 1, 1)) + (1 - alpha) * self.conv(x)  # type: ignore[no-any-return]


class TimeUpsampleRes2x(nn.Module):
    """Twice the frames: a learnt mix of interpolation and a convolution on it."""

    def __init__(self, chan_in: int, chan_out: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(chan_in, chan_out, 3, padding=1)
        self.mix_factor = nn.Parameter(torch.tensor([2.0]))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, k + 1, H, W) to (B, C, 2k + 1, H, W)."""
        alpha = torch.sigmoid(self.mix_factor)
        x = _twice_the_frames(x)
        y = self.conv(x)
        return torch.lerp(y, x.to(y.dtype), alpha.to(y.dtype))


class Spatial2xTime2x3DDownsample(nn.Module):
    """Half of height, width and frames in one causal convolution."""

    def __init__(self, chan_in: int, chan_out: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(chan_in, chan_out, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, 2k + 1, H, W) to (B, C, k + 1, H / 2, W / 2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1, 0, 0)))  # type: ignore[no-any-return]


class Spatial2xTime2x3DUpsample(nn.Module):
    """Twice the height, width and frames, the first frame apart, by interpolating; then a causal convolution."""

    def __init__(self, chan_in: int, chan_out: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(chan_in, chan_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, k + 1, H, W) to (B, C, 2k + 1, 2 H, 2 W)."""
        y = F.interpolate(x[:, :, :1], scale_factor=(1.0, 2.0, 2.0), mode="trilinear")
        if x.shape[2] > 1:
            later = F.interpolate(x[:, :, 1:], scale_factor=(2.0, 2.0, 2.0), mode="trilinear")
            y = torch.cat([y, later], dim=2)
        return self.conv(y)  # type: ignore[no-any-return]


_Makers = Mapping[str, Callable[..., nn.Module]]
CONVOLUTIONS: _Makers = MappingProxyType({"Conv2d": Conv2d, "CausalConv3d": CausalConv3d})
RESNETS: _Makers = MappingProxyType({"ResnetBlock2D": ResnetBlock2D, "ResnetBlock3D": ResnetBlock3D})
ATTENTION: _Makers = MappingProxyType({"AttnBlock3D": AttnBlock3DMixed, "AttnBlock3DFix": AttnBlock3D})
DOWN: _Makers = MappingProxyType(
    {
        "Downsample": Downsample,
        "SpatialDownsample2x": SpatialDownsample2x,
        "Spatial2xTime2x3DDownsample": Spatial2xTime2x3DDownsample,
    }
)
UP: _Makers = MappingProxyType(
    {"SpatialUpsample2x": SpatialUpsample2x, "Spatial2xTime2x3DUpsample": Spatial2xTime2x3DUpsample}
)
TIME_DOWN: _Makers = MappingProxyType(
    {"TimeDownsample2x": TimeDownsample2x, "TimeDownsampleRes2x": TimeDownsampleRes2x}
)
TIME_UP: _Makers = MappingProxyType({"TimeUpsample2x": TimeUpsample2x, "TimeUpsampleRes2x": TimeUpsampleRes2x})


def maker(makers: _Makers, name: str) -> Callable[..., nn.Module]:
    """The layer that a config.json asks for.

    Raises: ValueError: none of that name is built here.
    """
    if name not in makers:
        raise ValueError(f"the VAE's config asks for layer {name!r}; known in that place: {', '.join(sorted(makers))}")
    return makers[name]
