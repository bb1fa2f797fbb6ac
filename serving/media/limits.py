"""How large an image, and a request's images together, may be. Checked from headers, before anything is decoded."""

from __future__ import annotations

import math
from dataclasses import dataclass

from serving.errors import ImageTooLarge, InvalidImage, PayloadTooLarge, TooManyImages

MEGAPIXEL = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaLimits:
    """Bounds on untrusted images.

    Sides and areas are in pixels as stored, before EXIF rotation. ``max_aspect`` is the longer side over the shorter.
    ``max_pixels_per_request`` bounds the decoded size of all images of one call together, ``max_tiles_per_request`` the
    squares that they are cut into for a chat model, thumbnails included. An image of at most ``tiny_pixels`` pixels and
    ``tiny_bytes`` encoded bytes, without EXIF or ICC data, is decoded in place; zero turns that off. ``max_frames`` is
    1: animated files are refused. ``max_scans`` bounds how often a JPEG may go over its pixels: encoders use about ten
    (T.81 allows thousands), and each costs as much as the first.

    Raises:
        ValueError: a bound is not positive, not finite, or contradicts another one.
    """

    max_bytes_per_image: int = 20 << 20
    max_bytes_per_request: int = 64 << 20
    max_pixels: int = 16 * MEGAPIXEL
    max_pixels_per_request: int = 64 * MEGAPIXEL
    max_tiles_per_request: int = 256
    min_side: int = 4
    max_side: int = 16_384
    max_aspect: float = 64.0
    max_images: int = 64
    max_frames: int = 1
    max_scans: int = 100
    decode_timeout_s: float = 5.0
    tiny_pixels: int = 96 * 96
    tiny_bytes: int = 32 << 10

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            lowest = 0 if name.startswith("tiny_") else 1e-3
            if not math.isfinite(value) or value < lowest:
                raise ValueError(f"{name} is {value}; it must be a finite number of at least {lowest:g}")
        if self.min_side > self.max_side:
            raise ValueError(f"min_side {self.min_side} is over max_side {self.max_side}; lower it")
        if self.max_frames != 1:
            raise ValueError(f"max_frames is {self.max_frames}; only still images are decoded, set it to 1")

    def check_bytes(self, num_bytes: int) -> None:
        """Refuse an encoded image by its length.

        Raises:
            ImageTooLarge: too long.
            InvalidImage: empty.
        """
        if num_bytes == 0:
            raise InvalidImage("image is empty (0 bytes); send the bytes of a JPEG, PNG or WebP file")
        if num_bytes > self.max_bytes_per_image:
            raise ImageTooLarge(
                f"image has {num_bytes} bytes; the limit is {self.max_bytes_per_image}. Send a smaller or more "
                "compressed file"
            )

    def check_size(self, width: int, height: int) -> None:
        """Refuse an image by its dimensions.

        Raises:
            ImageTooLarge: a side or the area is over its limit.
            InvalidImage: a side is under ``min_side``, or the aspect ratio over ``max_aspect``.
        """
        size = f"{width} x {height} pixels"
        shorter, longer = min(width, height), max(width, height)
        if longer > self.max_side:
            raise ImageTooLarge(f"image is {size}; the longest allowed side is {self.max_side}. Scale it down")
        if width * height > self.max_pixels:
            raise ImageTooLarge(
                f"image is {size}, {width * height} in all; the limit is {self.max_pixels}. Scale it down"
            )
        if shorter < self.min_side:
            raise InvalidImage(f"image is {size}; the shortest allowed side is {self.min_side}. Scale it up or pad it")
        if longer > shorter * self.max_aspect:
            raise InvalidImage(
                f"image is {size}, an aspect ratio of {longer / shorter:.1f}; the limit is {self.max_aspect:g}. "
                "Crop or pad it"
            )


class MediaBudget:
    """Counts the images of one request while they are parsed, so that the refusal comes before the work.

    Not safe for threads; make one per request.
    """

    def __init__(self, limits: MediaLimits) -> None:
        self._limits = limits
        self._num_images = 0
        self._num_bytes = 0
        self._num_pixels = 0
        self._num_tiles = 0

    def add_image(self) -> None:
        """Count one more image.

        Raises:
            TooManyImages: it is one too many.
        """
        self._num_images += 1
        if self._num_images > self._limits.max_images:
            raise TooManyImages(
                f"request has more than {self._limits.max_images} images, which is the limit. Split it into several"
            )

    def add_bytes(self, num_bytes: int) -> None:
        """Count encoded bytes.

        Raises:
            PayloadTooLarge: the images of this request are too long together.
        """
        self._num_bytes += num_bytes
        if self._num_bytes > self._limits.max_bytes_per_request:
            raise PayloadTooLarge(
                f"the images of this request have {self._num_bytes} bytes or more; the limit is "
                f"{self._limits.max_bytes_per_request}. Split it into several"
            )

    def add_pixels(self, num_pixels: int) -> None:
        """Count pixels that will be decoded.

        Raises:
            ImageTooLarge: the images of this request are too large together.
        """
        self._num_pixels += num_pixels
        if self._num_pixels > self._limits.max_pixels_per_request:
            raise ImageTooLarge(
                f"the images of this request have {self._num_pixels} pixels or more; the limit is "
                f"{self._limits.max_pixels_per_request}. Scale them down or split the request"
            )

    def add_tiles(self, num_tiles: int) -> None:
        """Count tiles that images will be cut into.

        Raises:
            ImageTooLarge: the images of this request have too many together.
        """
        self._num_tiles += num_tiles
        if self._num_tiles > self._limits.max_tiles_per_request:
            raise ImageTooLarge(
                f"the images of this request are cut into {self._num_tiles} tiles or more; the limit is "
                f"{self._limits.max_tiles_per_request}. Scale them down or split the request"
            )
