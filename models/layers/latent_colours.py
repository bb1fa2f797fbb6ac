"""A rough picture from latents without the decoder: one matrix from the channels of a latent pixel to its colour."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_SAMPLES = 2
_SIDE = 8


class LatentColours:
    """``matrix`` (C + 1, 3): the last row is the colour of zeros, in 0..255."""

    def __init__(self, matrix: Tensor) -> None:
        self._matrix = matrix

    @classmethod
    def fitted(
        cls, decode: Callable[[Tensor], NDArray[np.uint8]], num_channels: int, device: torch.device
    ) -> LatentColours:
        """Least squares over what ``decode`` makes of random single frames; C random numbers for each 2 x 2 latent
        pixels, so that neighbours mix little."""
        generator = torch.Generator().manual_seed(0)
        inputs, colours = [], []
        for _ in range(_SAMPLES):
            coarse = torch.randn((1, num_channels, 1, _SIDE, _SIDE), generator=generator)
            latents = coarse.repeat_interleave(2, 3).repeat_interleave(2, 4)
            frame = torch.from_numpy(decode(latents.to(device))[0].astype(np.float32))
            block = frame.shape[0] // _SIDE
            blocks = frame.reshape(_SIDE, block, _SIDE, block, 3).mean((1, 3))
            inputs.append(_with_one(coarse[0, :, 0]))
            colours.append(blocks.reshape(-1, 3))
        return cls(torch.linalg.lstsq(torch.cat(inputs), torch.cat(colours)).solution)

    def picture(self, latents: Tensor) -> NDArray[np.uint8]:
        """The middle frame of (1, C, t, h, w) as (1, h, w, 3)."""
        middle = latents[0, :, latents.shape[2] // 2].float().cpu()
        colours = (_with_one(middle) @ self._matrix).clamp(0, 255).round()
        return colours.to(torch.uint8).reshape(1, *middle.shape[1:], 3).numpy()


def _with_one(latents: Tensor) -> Tensor:
    """(C, h, w) to (h * w, C + 1)."""
    flat = latents.flatten(1).T
    return torch.cat((flat, torch.ones(len(flat), 1)), dim=1)
