"""What a file says of itself before anything is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

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
