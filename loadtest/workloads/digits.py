"""Pictures of digits, drawn from a seed: the same seed and index give the same bytes.

The digits are drawn with Pillow's built-in font, shifted, scaled and mixed with noise, so that each picture differs
and no result cache can answer a picture that was not sent before. They resemble what the nano classifier was trained
on; they are not its test set, so accuracy on them is a check that answers are meaningful and not a quality figure.
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_JPEG_QUALITY = 90


def draw_digit(seed: int, index: int, *, size_px: int = 32, image_format: str = "png") -> tuple[bytes, str]:
    """One encoded picture (``size_px`` square, grey values stored as RGB) and its label "0" ... "9".

    Raises: ValueError: on a size under 8 or a format other than png, jpeg, webp.
    """
    if size_px < 8:
        raise ValueError(f"size_px is {size_px}; a digit needs at least 8")
    if image_format not in ("png", "jpeg", "webp"):
        raise ValueError(f"image_format is {image_format!r}; it must be png, jpeg or webp")
    rng = np.random.default_rng((seed, index))
    digit = int(rng.integers(10))
    pixels = _canvas(rng, str(digit), size_px) + rng.normal(0.0, 6.0, (size_px, size_px))
    grey = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return _encode(grey.convert("RGB"), image_format), str(digit)


def _canvas(rng: np.random.Generator, digit: str, size_px: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """White on black, like the scans of the training set."""
    image = Image.new("L", (size_px, size_px), 0)
    font = _font(round(size_px * float(rng.uniform(0.75, 0.95))))
    shift_x, shift_y = rng.uniform(-0.05, 0.05, 2) * size_px
    centre = (size_px / 2 + float(shift_x), size_px / 2 + float(shift_y))
    ImageDraw.Draw(image).text(centre, digit, fill=int(rng.integers(200, 256)), font=font, anchor="mm")
    return np.asarray(image, dtype=np.float64)


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font


def _encode(image: Image.Image, image_format: str) -> bytes:
    buffer = io.BytesIO()
    options = {"png": {"compress_level": 1}, "jpeg": {"quality": _JPEG_QUALITY}, "webp": {"quality": _JPEG_QUALITY}}
    image.save(buffer, image_format, **options[image_format])
    return buffer.getvalue()
