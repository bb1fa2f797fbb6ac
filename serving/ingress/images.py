"""Images that travel as text: base64, or a ``data:`` URL of it. A broken one fails alone."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Sequence

from serving.domain import ImageInput
from serving.errors import ClientError, InvalidImage, UnsupportedMediaType
from serving.ingress.front import shown

SLICE_CHARS = 1 << 18
"""Characters decoded before other requests get a turn: about 0.4 ms. A multiple of four."""

_URL_SCHEMES = ("http:", "https:", "file:", "ftp:", "s3:", "gs:")


async def images_from_text(texts: Sequence[str], param: str) -> tuple[ImageInput, ...]:
    """Decode every text; one that cannot be decoded becomes an ``ImageInput`` with an error.

    ``param`` names the field in that error; ``{}`` in it stands for the index.
    """
    images: list[ImageInput] = []
    for index, text in enumerate(texts):
        try:
            payload = _payload(text)
            images.append(ImageInput(encoded=await decode_base64(payload)))
        except ClientError as error:
            error.param = param.format(index)
            images.append(ImageInput(error=error))
    return tuple(images)


def _payload(text: str) -> str:
    """Strip the head of a ``data:`` URL, after a look at it."""
    if not text.startswith("data:"):
        if text[:8].lower().startswith(_URL_SCHEMES):
            raise InvalidImage("image is a URL; URLs are not fetched here. Send the bytes as base64 or a data: URL")
        return text
    comma = text.find(",", 0, 256)
    head = text[5:comma].lower()
    if comma < 0 or not head.endswith(";base64"):
        raise InvalidImage("image is a data: URL without base64; send 'data:image/png;base64,...'")
    media_type = head.partition(";")[0]
    if not media_type.startswith("image/"):
        raise UnsupportedMediaType(
            f"data: URL is of type {shown(media_type)}; send image/jpeg, image/png or image/webp"
        )
    return text[comma + 1 :]


async def decode_base64(payload: str | memoryview) -> bytes:
    """Decode strictly; other requests get their turn while a large one is decoded. Raises: InvalidImage."""
    return _decode(payload) if len(payload) <= SLICE_CHARS else await _decode_in_slices(payload)


def _decode(payload: str | memoryview) -> bytes:
    if not payload:
        raise InvalidImage("image is empty; send the base64 of a JPEG, PNG or WebP file")
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError):
        raise _broken(payload) from None


async def _decode_in_slices(payload: str | memoryview) -> bytes:
    data = bytearray()
    for start in range(0, len(payload), SLICE_CHARS):
        part = payload[start : start + SLICE_CHARS]
        decoded = _decode(part)
        if start + SLICE_CHARS < len(payload) and len(decoded) != SLICE_CHARS // 4 * 3:
            raise _broken(payload)  # padding in the middle
        data += decoded
        await asyncio.sleep(0)
    return bytes(data)


def _broken(payload: str | memoryview) -> InvalidImage:
    start = payload[:24] if isinstance(payload, str) else bytes(payload[:24]).decode("utf-8", "replace")
    rest = "" if len(payload) <= 24 else f"... ({len(payload)} long)"
    return InvalidImage(
        f"image {shown(start)}{rest} is not valid base64; send the standard alphabet, padded, without line breaks"
    )
