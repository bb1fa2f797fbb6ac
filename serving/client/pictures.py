"""Images on the command line: read from files, put into a request, and boxes drawn upon them.

The server decides what a valid image is. Here only what could never be one is refused, before anything is sent.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from models.contract import TextBox
from models.registry import families
from serving.client.http import Client
from serving.client.told import Failed
from serving.errors import InvalidImage
from serving.limits import IngressLimits
from serving.media.decode import decode
from serving.media.limits import MediaLimits

MAX_FILE_BYTES = IngressLimits().max_body_bytes
"""No request can carry more. A pipe or a device may never end, so no more is read either."""
_ANY_SIZE = MediaLimits(
    max_bytes_per_image=MAX_FILE_BYTES, max_pixels=1 << 28, min_side=1, max_side=1 << 16, max_aspect=1 << 16
)
"""Which images are too large is the server's to say."""

DRAWABLE = (".png", ".jpg", ".jpeg", ".webp")
MAX_LABEL_CHARS = 40
_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080")
_OTHERS = (
    (b"GIF8", "a GIF"),
    (b"BM", "a BMP"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"%PDF", "a PDF"),
    (b"<svg", "an SVG"),
)

PixelBox = tuple[int, int, int, int]
BoxesIn = Callable[[str], list[TextBox]]
"""The boxes that a text names."""


class BadPicture(Failed):
    """An image that cannot be sent or drawn upon; the message names it and says why."""


@dataclass(frozen=True)
class Picture:
    """An encoded image file, or the URL of one. ``name`` is what the user called it."""

    name: str
    url: str
    encoded: bytes | None = None
    """None for a URL: only the server fetches it."""

    def part(self) -> dict[str, Any]:
        """Return the part of a message."""
        return {"type": "image_url", "image_url": {"url": self.url}}

    def open(self) -> Image.Image:
        """Decode it, upright as the server sees it. Raises: BadPicture."""
        if self.encoded is None:
            raise BadPicture(f"{self.name} is a URL; give a file, so that pixels can be counted here")
        try:
            return Image.fromarray(decode(self.encoded, _ANY_SIZE).rgb)
        except InvalidImage as error:
            raise BadPicture(f"{self.name} cannot be decoded ({error.message})") from None


def load_picture(name: str) -> Picture:
    """Read a file, or take a URL as it is.

    Raises: BadPicture: no such file, unreadable, empty, too large, or neither JPEG nor PNG nor WebP.
    """
    if name[:5].lower() == "data:":
        return Picture(f"{name[:40]}...", name)
    if re.match(r"[a-z][a-z0-9+.-]*://", name, re.IGNORECASE):
        return Picture(name, name)
    try:
        with Path(name).expanduser().open("rb") as file:
            encoded = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise BadPicture(f"{name} cannot be read ({why}); give a JPEG, PNG or WebP file") from None
    if len(encoded) > MAX_FILE_BYTES:
        raise BadPicture(f"{name} has more than {MAX_FILE_BYTES} bytes, the most a request may carry; make it smaller")
    return Picture(name, f"data:{_media_type(name, encoded)};base64,{base64.b64encode(encoded).decode()}", encoded)


def _media_type(name: str, encoded: bytes) -> str:
    if encoded.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if encoded.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if encoded.startswith(b"RIFF") and encoded[8:12] == b"WEBP":
        return "image/webp"
    if not encoded:
        raise BadPicture(f"{name} is empty; give a JPEG, PNG or WebP file")
    kind = next((kind for start, kind in _OTHERS if encoded.startswith(start)), "of an unknown format")
    raise BadPicture(f"{name} is {kind}; give a JPEG, PNG or WebP file")


def boxes_of(client: Client, model: str) -> BoxesIn:
    """What finds the boxes in the answers of a served model: its family's, whatever name it is served under.

    Raises: Failed: its answers name no places, or nobody says what it is.
    """
    family = families().get(str(client.model(model).get("family")))
    if family is None or "boxes" not in family.parts:
        able = ", ".join(name for name, known in families().items() if "boxes" in known.parts) or "none"
        raise Failed(f"{model} names no places in images; families whose models do: {able}")
    found: BoxesIn = family.part("boxes")
    return found


def in_pixels(boxes: Iterable[TextBox], size: tuple[int, int]) -> list[PixelBox]:
    """Boxes as (x1, y1, x2, y2) in pixels of an image of ``size`` (width, height)."""
    width, height = size
    return [
        (round(box.left * width), round(box.top * height), round(box.right * width), round(box.bottom * height))
        for box in boxes
    ]


def box_labels(text: str, boxes: Sequence[TextBox]) -> list[str]:
    """What to write at each box: the words before it on its line, if the font can write them, or else its number."""
    labels = []
    starts = [0, *(box.end for box in boxes)]
    for number, (start, box) in enumerate(zip(starts, boxes, strict=False), start=1):
        words = text[start : box.start].rpartition("\n")[2].strip(" \t,;:.-")
        fits = 0 < len(words) <= MAX_LABEL_CHARS and words.isascii() and words.isprintable()
        labels.append(words if fits else str(number))
    return labels


@dataclass(frozen=True)
class Drawing:
    """Where a picture is saved with the boxes of an answer, and what finds them."""

    out: Path
    boxes_in: BoxesIn

    def save(self, picture: Picture, text: str) -> int:
        """Draw and label the boxes of an answer. Returns how many; with none, nothing is saved.

        Raises: BadPicture: it cannot be decoded or saved.
        """
        image, boxes = picture.open(), self.boxes_in(text)
        if not boxes:
            return 0
        _draw(image, in_pixels(boxes, image.size), box_labels(text, boxes))
        try:
            image.save(self.out)
        except (OSError, ValueError) as error:
            raise BadPicture(f"{self.out} cannot be written ({error})") from None
        return len(boxes)


def _draw(image: Image.Image, boxes: Sequence[PixelBox], labels: Sequence[str]) -> None:
    side = min(image.size)
    canvas, font = ImageDraw.Draw(image), ImageFont.load_default(max(10, side // 25))
    for number, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        colour = _COLOURS[number % len(_COLOURS)]
        canvas.rectangle(box, outline=colour, width=max(1, side // 150))
        left, top, right, bottom = canvas.textbbox((0, 0), label, font)
        x = min(box[0], max(0, image.width - int(right) - 2))
        y = box[1] - int(bottom) - 3 if box[1] > bottom + 3 else min(box[3] + 1, max(0, image.height - int(bottom) - 3))
        canvas.rectangle((x + left - 1, y + top - 1, x + right + 1, y + bottom + 1), fill=colour)
        canvas.text((x, y), label, "white", font)
