"""A picture as a file stores it: decoded, but not yet upright, on white, or in sRGB."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPicture:
    """``colour`` in mode L, RGB or CMYK; ``alpha`` in mode L, of the same size, if anything may be transparent.

    ``exif`` and ``profile`` (ICC) are the bytes that the file has, unread.
    """

    colour: Image.Image
    alpha: Image.Image | None = None
    exif: bytes | None = None
    profile: bytes | None = None
