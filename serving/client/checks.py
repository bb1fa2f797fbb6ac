"""Questions of ``vireo up`` to itself: what they are asked through, and the pictures that they are about.

Whether an answer is right is not judged; that it is whole, and of the promised kind, is.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import grpc
import httpx
from PIL import Image, ImageDraw, ImageFont

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TIMEOUT_S = 180.0


@dataclass(frozen=True)
class Target:
    """Both doors, and the model that is asked."""

    http: httpx.Client
    channel: grpc.Channel
    model: str = ""


Check: TypeAlias = Callable[[Target], str]
"""Asks, and returns in a few words what came back. Raises whatever it likes: the system is then not announced as up."""


def digit_png(digit: str = "7") -> bytes:
    """A rendered digit, 64x64, dark on light."""
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).text((32, 32), digit, "black", ImageFont.load_default(52), anchor="mm")
    return _png(image)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def example_png(name: str, word: str | None = None) -> bytes:
    """Return an example; where the package has been installed without them, a picture like it: a word or a square."""
    path = EXAMPLES / name
    if path.is_file():
        return path.read_bytes()
    image = Image.new("RGB", (224, 112), "white")
    canvas = ImageDraw.Draw(image)
    if word is None:
        canvas.rectangle((140, 30, 190, 80), fill="red")
    else:
        canvas.text((112, 56), word, "black", ImageFont.load_default(40), anchor="mm")
    return _png(image)
