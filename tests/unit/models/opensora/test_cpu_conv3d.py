"""The fast routes of the CausalVAE on a CPU give what the plain ones give."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.families.vdit import cpu_conv3d
from models.families.vdit.cpu_conv3d import conv3d, upsampled_conv
from models.families.vdit.vae_layers import TimeUpsample2x


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 3, 1, 1, 1), (2, 3, 5, 4, 7)])
def test_convolution_of_an_enlarged_clip_is_that_of_the_clip_by_folded_kernels(
    shape: tuple[int, ...], bias: bool
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv3d(3, 4, (1, 3, 3), padding=(0, 1, 1), bias=bias)
    x = torch.randn(shape, requires_grad=True)
    plain = conv(F.interpolate(x, scale_factor=(1.0, 2.0, 2.0), mode="nearest"))
    fast = upsampled_conv(conv, x)
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-5)
    wanted, found = (torch.autograd.grad(y.square().sum(), (x, conv.weight)) for y in (plain, fast))
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-4)


def test_small_clips_are_convolved_by_onednn_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.Size] = []
    plain = torch.mkldnn_convolution

    def counted(x: Tensor, *rest: object) -> Tensor:
        calls.append(x.shape)
        return plain(x, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "mkldnn_convolution", counted)
    torch.manual_seed(1)
    conv, x = nn.Conv3d(8, 16, 3, padding=(0, 1, 1)), torch.randn(1, 8, 6, 5, 9)
    with torch.inference_mode():
        fast = conv3d(conv, x)
        torch.testing.assert_close(fast, conv(x), atol=1e-5, rtol=1e-5)
        assert calls == [x.shape]
        conv3d(nn.Conv3d(8, 16, 1), x)  # a matrix product
        conv3d(conv, x.expand(2, -1, -1, -1, -1))  # torch asks oneDNN by itself
        monkeypatch.setattr(cpu_conv3d, "_SLOW_UNTIL", 8 * 6 * 5 - 1)
        conv3d(conv, x)  # likewise
    conv3d(conv, x)  # a gradient may be wanted
    assert calls == [x.shape]


@pytest.mark.parametrize("frames", [1, 2, 3, 6])
def test_frames_are_doubled_as_torch_interpolates(frames: int) -> None:
    torch.manual_seed(2)
    x = torch.randn(2, 3, frames, 4, 5)
    doubled = TimeUpsample2x(3, 3)(x)
    assert doubled.shape[2] == 2 * frames - 1
    torch.testing.assert_close(doubled[:, :, :1], x[:, :, :1])
    if frames > 1:
        later = F.interpolate(x[:, :, 1:], scale_factor=(2.0, 1.0, 1.0), mode="trilinear")
        torch.testing.assert_close(doubled[:, :, 1:], later)
