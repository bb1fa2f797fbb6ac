"""From bytes or pixels to a model's input: decode, hash, process. Pure; the pool decides in which process it runs."""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from serving.domain import Pixels
from serving.errors import InvalidImage
from serving.media.decode import decode
from serving.media.header import ImageHeader
from serving.media.limits import MediaLimits

Grid: TypeAlias = tuple[int, int]
"""(rows, columns) of the tiles that an image was cut into, without its thumbnail."""
Processor: TypeAlias = Callable[[Pixels], Pixels | tuple[Pixels, Grid]]
"""Canonical pixels (H, W, 3) to a model's input, all uint8: one square (S, S, 3), or tiles (T, S, S, 3) and a grid."""
ProcessorFactory: TypeAlias = Callable[[str, int | None], Processor]
"""Model id, and the most tiles that a request allows (None: as many as the model), to a processor. Must be picklable:
it is sent to the workers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedImage:
    """A model's input, and where it came from.

    ``pixels``: uint8 (S, S, 3), or tiles (T, S, S, 3), read-only. ``grid``: of the tiles; None where there are none.
    ``content_sha256``: 32 bytes over the canonical pixels, before the processor. ``original_size``: (width, height) as
    sent. ``decode_ms``: time of the work itself, without waiting; 0 where it was done for an earlier request.
    """

    pixels: Pixels
    content_sha256: bytes
    original_size: tuple[int, int]
    decode_ms: float
    grid: Grid | None = None

    @property
    def identity(self) -> bytes:
        """What a model sees of it: its pixels, and how they are cut."""
        return self.content_sha256 + "x".join(map(str, self.grid or ())).encode()

    @property
    def num_tiles(self) -> int:
        """Squares that the model gets."""
        return 1 if self.grid is None else self.pixels.shape[0]


def prepare_encoded(
    data: bytes, limits: MediaLimits, process: Processor, header: ImageHeader | None = None
) -> PreparedImage:
    """Decode a file and prepare it.

    Raises:
        InvalidImage and its kinds: see ``serving.media.decode.decode``.
    """
    started_s = time.perf_counter()
    image = decode(data, limits, header)
    return _finish(image.rgb, image.original_size, process, started_s)


def prepare_pixels(rgb: Pixels, limits: MediaLimits, process: Processor) -> PreparedImage:
    """Prepare pixels that came decoded, under the same limits and with the same hash as the same pixels in a file.

    Raises:
        InvalidImage, ImageTooLarge: not uint8 (H, W, 3), or of a forbidden size.
    """
    started_s = time.perf_counter()
    check_pixels(rgb, limits)
    return _finish(rgb, (rgb.shape[1], rgb.shape[0]), process, started_s)


def check_pixels(rgb: Pixels, limits: MediaLimits) -> None:
    """Refuse arrays that are no image of an allowed size.

    Raises:
        InvalidImage, ImageTooLarge: not uint8 (H, W, 3), or of a forbidden size.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        shape = "x".join(map(str, rgb.shape))
        raise InvalidImage(
            f"pixel tensor is {rgb.dtype} of shape [{shape}]; each image must be UINT8 [height, width, 3]"
        )
    limits.check_size(rgb.shape[1], rgb.shape[0])


def _finish(rgb: Pixels, original_size: tuple[int, int], process: Processor, started_s: float) -> PreparedImage:
    digest = content_sha256(rgb)
    processed = process(rgb)
    pixels, grid = processed if isinstance(processed, tuple) else (processed, None)
    num_axes = 3 if grid is None else 4
    if pixels.dtype != np.uint8 or pixels.ndim != num_axes:
        raise TypeError(
            f"processor returned {pixels.dtype} with {pixels.ndim} axes; it must return uint8 (H, W, 3), or uint8 "
            "(T, S, S, 3) with a grid"
        )
    pixels = np.ascontiguousarray(pixels)
    pixels.flags.writeable = False
    return PreparedImage(
        pixels=pixels,
        content_sha256=digest,
        original_size=original_size,
        decode_ms=(time.perf_counter() - started_s) * 1e3,
        grid=grid,
    )


FORMAT_VERSION = b"vireo-rgb8-2"
"""Changes whenever decoding may give other pixels for the same file (docs of ``serving.media.decode``)."""


def content_sha256(rgb: Pixels) -> bytes:
    """Hash an image, shape (H, W, 3), uint8: version, mode, size and every pixel. 32 bytes.

    The size is part of it: the same bytes in another shape are another image.
    """
    height, width, _ = rgb.shape
    digest = hashlib.sha256(FORMAT_VERSION + struct.pack("<3sII", b"RGB", height, width))
    digest.update(rgb.data if rgb.flags.c_contiguous else rgb.tobytes())
    return digest.digest()
