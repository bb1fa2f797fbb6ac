"""Picture in, model input out: resize and square, still as bytes. NumPy and Pillow only.

For every family whose input is a ``PictureIO``. Runs in decode workers, which never import torch;
scaling to floats and normalising happen on the model's side (``models.layers.pixels``), on the device and the whole
batch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.contract import Variant

Pixels = NDArray[np.uint8]


class SquarePicture:
    """Callable: uint8 RGB (H, W, 3) of any size -> uint8 (S, S, 3) with S = ``io.input_size``. Holds no state.

    ``crop``: the evaluation transform of ImageNet, resize of the shorter side and centre crop. ``pad``: the longer side
    is brought to S and the rest filled with the colour of the border, so that nothing is cut off. ``squash``: both
    sides are brought to ``io.resize_size``, whatever the shape, and the centre is cut out.
    """

    def __init__(self, variant: Variant) -> None:
        self._io = variant.io
        self._resampling = Image.Resampling[variant.io.interpolation.upper()]

    def __call__(self, rgb: Pixels) -> Pixels:
        """Bring one picture to the model's input size.

        Raises:
            ValueError: the array is not uint8 (H, W, 3) with at least one pixel.
        """
        if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
            raise ValueError(f"expected uint8 (H, W, 3) pixels, got {rgb.dtype} {rgb.shape}; decode to RGB first")
        size, side = (rgb.shape[0], rgb.shape[1]), self._io.input_size
        if self._io.fit == "squash":
            return centre_crop(self._resize(rgb, (self._io.resize_size, self._io.resize_size)), side)
        if self._io.fit == "pad":
            fitted = self._resize(rgb, longer_side_to(*size, self._io.resize_size))
            return pad_to_square(fitted, side, border_colour(rgb))
        return centre_crop(self._resize(rgb, shorter_side_to(*size, self._io.resize_size)), side)

    def _resize(self, rgb: Pixels, size: tuple[int, int]) -> Pixels:
        if rgb.shape[:2] == size:
            return np.ascontiguousarray(rgb)
        image = Image.fromarray(np.ascontiguousarray(rgb))
        return np.array(image.resize((size[1], size[0]), self._resampling))


def shorter_side_to(height: int, width: int, side: int) -> tuple[int, int]:
    """Size (height, width) with the shorter side equal to ``side``; the longer is rounded down, as torchvision does.

    The longer side stops at 64 times the shorter: a 1 x 100,000 strip would otherwise grow to 256 x 25,600,000.
    """
    if height <= width:
        return side, min(int(side * width / height), side * 64)
    return min(int(side * height / width), side * 64), side


def longer_side_to(height: int, width: int, side: int) -> tuple[int, int]:
    """Size (height, width) with the longer side equal to ``side`` and the shorter at least one pixel."""
    longest = max(height, width)
    return max(1, round(side * height / longest)), max(1, round(side * width / longest))


def centre_crop(rgb: Pixels, side: int) -> Pixels:
    """Cut the middle ``side`` x ``side`` square; what is smaller gets a black border, as torchvision gives it."""
    if min(rgb.shape[:2]) < side:
        above, left = (max(0, side - length) // 2 for length in rgb.shape[:2])
        below, right = ((max(0, side - length) + 1) // 2 for length in rgb.shape[:2])
        rgb = np.pad(rgb, ((above, below), (left, right), (0, 0)))
    top = round((rgb.shape[0] - side) / 2)
    left = round((rgb.shape[1] - side) / 2)
    return np.ascontiguousarray(rgb[top : top + side, left : left + side])


def border_colour(rgb: Pixels) -> Pixels:
    """Median colour (3,) of the outermost ring of pixels."""
    border = np.concatenate([rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1]])
    colour: Pixels = np.median(border, axis=0).astype(np.uint8)
    return colour


def pad_to_square(rgb: Pixels, side: int, colour: Pixels) -> Pixels:
    """Centre the picture, whose sides are at most ``side``, in a square of ``colour``."""
    height, width = rgb.shape[:2]
    if (height, width) == (side, side):
        return rgb
    square = np.empty((side, side, 3), np.uint8)
    square[:] = colour
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = rgb
    return square
