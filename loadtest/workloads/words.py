"""Pictures of words for chat, drawn from a seed: the same seed and index give the same bytes, others differ."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def draw_words(seed: int, index: int, *, width_px: int, height_px: int, image_format: str = "png") -> bytes:
    """One encoded picture: lines of made-up words, dark on a light colour.

    Raises: ValueError: a side under 16, or a format other than png, jpeg, webp.
    """
    if min(width_px, height_px) < 16:
        raise ValueError(f"a picture of {width_px} x {height_px}; a word needs at least 16 pixels each way")
    if image_format not in ("png", "jpeg", "webp"):
        raise ValueError(f"image_format is {image_format!r}; it must be png, jpeg or webp")
    rng = np.random.default_rng((seed, index))
    paper, ink = rng.integers(200, 256, 3), rng.integers(0, 100, 3)
    image = Image.new("RGB", (width_px, height_px), tuple(int(value) for value in paper))
    draw, font_px = ImageDraw.Draw(image), max(12, min(width_px, height_px) // 8)
    for top in range(font_px // 2, height_px - font_px, round(1.5 * font_px)):
        words = " ".join(_word(rng) for _ in range(8))
        draw.text((font_px // 2, top), words, fill=tuple(int(value) for value in ink), font=_font(font_px))
    buffer = io.BytesIO()
    image.save(buffer, image_format, **({"compress_level": 1} if image_format == "png" else {"quality": 90}))
    return buffer.getvalue()


def _word(rng: np.random.Generator) -> str:
    return "".join(_LETTERS[letter] for letter in rng.integers(0, 26, int(rng.integers(2, 9))))


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font
