"""What a file says of itself before anything is decoded, what decoding it is predicted to cost, and how it stores its
picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from PIL import Image

from serving.errors import InvalidImage

MAX_PROFILE_BYTES = 4 << 20
"""A longer ICC profile is ignored."""
MAX_SEGMENTS = 2_000
"""Segments or chunks read before giving up: bounds the time spent on a file made of empty ones."""


class ImageFormat(Enum):
    """Formats that are decoded; the value is Pillow's name."""

    JPEG = "JPEG"
    PNG = "PNG"
    WEBP = "WEBP"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageHeader:
    """What the header says, and what a decoder would have to do.

    ``is_plain``: baseline coded, no EXIF or ICC inside, so the cost follows from the size. ``num_scans``: how often a
    decoder goes over the pixels, as far as that is seen without reading a long file to its end; 1 but for JPEG.
    """

    format: ImageFormat
    width: int
    height: int
    is_plain: bool
    num_scans: int = 1

    @property
    def num_pixels(self) -> int:
        """Area as stored."""
        return self.width * self.height


def truncated(image_format: ImageFormat) -> InvalidImage:
    """The refusal of a file that ends too early."""
    return InvalidImage(f"{image_format.value} file ends before its picture does; send the whole file")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPicture:
    """``colour`` in mode L, RGB or CMYK; ``alpha`` in mode L, of the same size, if anything may be transparent.

    ``exif`` and ``profile`` (ICC) are the bytes that the file has, unread.
    """

    colour: Image.Image
    alpha: Image.Image | None = None
    exif: bytes | None = None
    profile: bytes | None = None


_FIXED_S = 3e-4
"""The way to a worker and back."""
_PREPARED_PIXEL_S = 10e-9
"""Hashing and scaling, whatever the pixels came from."""
_PIXEL_S = {ImageFormat.JPEG: 15e-9, ImageFormat.PNG: 70e-9, ImageFormat.WEBP: 50e-9}
_BYTE_S = {ImageFormat.JPEG: 25e-9, ImageFormat.PNG: 5e-9, ImageFormat.WEBP: 60e-9}
_PROGRESSIVE_BYTE_S = 80e-9
_SCAN_PIXEL_S = 2e-9
"""Each of several scans goes over every block, whatever little it says of it."""


def predict_s(header: ImageHeader, num_bytes: int) -> float:
    """Seconds of one core for a file."""
    pixel_s, byte_s = _PIXEL_S[header.format] + _PREPARED_PIXEL_S, _BYTE_S[header.format]
    if header.num_scans > 1:
        pixel_s += _SCAN_PIXEL_S * header.num_scans
        byte_s = _PROGRESSIVE_BYTE_S
    return _FIXED_S + header.num_pixels * pixel_s + num_bytes * byte_s


def predict_pixels_s(num_pixels: int) -> float:
    """Seconds of one core for pixels that came decoded."""
    return _FIXED_S + num_pixels * _PREPARED_PIXEL_S
