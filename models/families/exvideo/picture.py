"""A first frame, as the networks read it: PNG to pixels, and pixels to what CLIP is shown."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from models.contract import SettingError
from models.io import ClipRequest

CLIP_SIDE = 224
"""Whatever the network's configuration says: SVD's pipeline does not ask it."""
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def check_picture(request: ClipRequest) -> None:
    """Pass a first frame of the clip's size, by its header. Raises: SettingError."""
    if not request.picture:
        raise SettingError("picture", "this model makes a clip of its first frame, and none was given")
    try:
        with Image.open(io.BytesIO(request.picture)) as picture:
            size = picture.size
    except (UnidentifiedImageError, OSError):
        raise SettingError("picture", "the first frame is no picture that can be read") from None
    if size != (request.width, request.height):
        raise SettingError(
            "picture", f"the first frame is {size[0]}x{size[1]}; the clip is {request.width}x{request.height}"
        )


def pixels_of(png: bytes) -> Tensor:
    """(1, 3, H, W) in -1..1."""
    with Image.open(io.BytesIO(png)) as picture:
        array = np.array(picture.convert("RGB"), np.float32) / 255.0
    return torch.from_numpy(array).permute(2, 0, 1)[None] * 2.0 - 1.0


def clip_inputs(pixels: Tensor) -> Tensor:
    """(1, 3, 224, 224): blurred against aliasing, while still in -1..1, then scaled, then normalised."""
    height, width = pixels.shape[-2:]
    blurred = _blurred(_blurred(pixels, width / CLIP_SIDE, dim=3), height / CLIP_SIDE, dim=2)
    scaled = F.interpolate(blurred, size=(CLIP_SIDE, CLIP_SIDE), mode="bicubic", align_corners=True)
    mean, std = (torch.tensor(each, device=pixels.device).view(1, 3, 1, 1) for each in (CLIP_MEAN, CLIP_STD))
    return ((scaled + 1.0) / 2.0 - mean) / std


def _blurred(pixels: Tensor, factor: float, dim: int) -> Tensor:
    """Along one side, which shrinks by ``factor``: a Gaussian of (factor - 1) / 2, cut off at two deviations."""
    sigma = max((factor - 1.0) / 2.0, 0.001)
    extent = int(max(4.0 * sigma, 3)) | 1
    places = torch.arange(extent, dtype=pixels.dtype, device=pixels.device) - extent // 2
    kernel = torch.exp(-(places**2) / (2 * torch.tensor(sigma, dtype=pixels.dtype) ** 2))
    shape = [1, 1, 1, 1]
    shape[dim] = extent
    kernel = (kernel / kernel.sum()).view(shape).expand(3, 1, -1, -1)
    around = (extent // 2, extent // 2, 0, 0) if dim == 3 else (0, 0, extent // 2, extent // 2)
    return F.conv2d(F.pad(pixels, around, mode="reflect"), kernel, groups=3)
