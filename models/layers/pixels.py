"""Bytes of pictures to the floats that a network was trained on."""

from __future__ import annotations

import torch
from torch import Tensor

from models.io import PictureIO


class Normalise:
    """uint8 (B, S, S, 3) -> float32 of the same shape: one multiply-add over rows of S * 3 values.

    Whole rows, because a CPU vectorises over the last dimension and three channels do not fill a register.
    """

    def __init__(self, io: PictureIO, device: torch.device | str = "cpu") -> None:
        std, mean = torch.tensor(io.std), torch.tensor(io.mean)
        self._scale = (1.0 / (255.0 * std)).repeat(io.input_size).to(device)
        self._shift = (-mean / std).repeat(io.input_size).to(device)

    def __call__(self, images: Tensor) -> Tensor:
        """Scale and shift a batch."""
        return torch.addcmul(self._shift, images.float().flatten(2), self._scale).view(images.shape)


def check_pictures(images: Tensor, side: int) -> Tensor:
    """Pass a batch of uint8 pictures of the right size.

    Raises:
        ValueError: wrong dtype or shape.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1:] != (side, side, 3):
        raise ValueError(
            f"expected uint8 images of shape (B, {side}, {side}, 3), got {images.dtype} {tuple(images.shape)}; "
            "prepare the pictures with Family.prepare first"
        )
    return images


def to_input(images: Tensor, io: PictureIO) -> Tensor:
    """Normalise uint8 (B, S, S, 3) to float32 (B, 3, S, S), channels last in memory, as networks take it."""
    return Normalise(io, images.device)(images).permute(0, 3, 1, 2)
