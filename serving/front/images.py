"""Images that travel as text, on every surface by this parser: base64, or a ``data:`` URL (RFC 2397).

Of a URL: scheme and ``base64`` in any case, parameters of any kind, with or without base64. Whatever the media type
says is passed over: what the bytes are is decided by the bytes. A broken image fails alone.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
from collections.abc import Sequence
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from serving.domain import ImageInput
from serving.errors import ClientError, InvalidImage
from serving.front.front import shown

SLICE_CHARS = 1 << 18
"""Characters decoded before other requests get a turn: about 0.4 ms. A multiple of four."""

_URL_SCHEMES = ("http:", "https:", "file:", "ftp:", "s3:", "gs:")
MAX_HEAD_CHARS: Final = 256
MAX_ESCAPES: Final = 1 << 16
"""Percent signs in one URL: unescaping them takes about 10 ms."""


class DataUrl(NamedTuple):
    """A URL, and where its data begin: copies of large ones hold others up."""

    text: str
    start: int
    is_base64: bool

    @property
    def most_bytes(self) -> int:
        """About how long the data are: never less than 2 bytes below."""
        num_chars = len(self.text) - self.start
        return num_chars // 4 * 3 if self.is_base64 else num_chars

    @property
    def is_escaped(self) -> bool:
        """Whether the data have percent signs."""
        return self.text.find("%", self.start) >= 0

    def unescaped(self) -> bytes:
        """Return the data without percent-encoding. Raises: InvalidImage: too much of it to be worth while."""
        if self.text.count("%", self.start) > MAX_ESCAPES:
            raise InvalidImage(f"data: URL has more than {MAX_ESCAPES} percent-encoded bytes, the limit; send base64")
        return unquote_to_bytes(self.text[self.start :].encode("utf-8", "surrogatepass"))


def is_data_url(text: str) -> bool:
    """Whether it has this scheme."""
    return text[:5].lower() == "data:"


def parse_data_url(url: str) -> DataUrl:
    """Split a URL that ``is_data_url``.

    Raises: InvalidImage: there is no comma, or too late.
    """
    comma = url.find(",", 5, MAX_HEAD_CHARS)
    if comma < 0:
        raise InvalidImage(
            f"image is {shown(url, 40)}; a data: URL has a comma within {MAX_HEAD_CHARS} characters, as in "
            "'data:image/png;base64,...'"
        )
    last = url[5:comma].rpartition(";")[2]
    return DataUrl(url, comma + 1, ";" in url[5:comma] and last.strip().lower() == "base64")


async def images_from_text(texts: Sequence[str], param: str) -> tuple[ImageInput, ...]:
    """Decode every text; one that cannot be decoded becomes an ``ImageInput`` with an error.

    ``param`` names the field in that error; ``{}`` in it stands for the index.
    """
    images: list[ImageInput] = []
    for index, text in enumerate(texts):
        try:
            images.append(ImageInput(encoded=await _image(text)))
        except ClientError as error:
            error.param = param.format(index)
            images.append(ImageInput(error=error))
    return tuple(images)


async def _image(text: str) -> bytes:
    if is_data_url(text):
        return await decode_url(parse_data_url(text))
    if text[:8].lower().startswith(_URL_SCHEMES):
        raise InvalidImage("image is a URL; URLs are not fetched here. Send the bytes as base64 or a data: URL")
    return await decode_base64(text)


async def decode_url(url: DataUrl) -> bytes:
    """Return the bytes of a ``data:`` URL. Raises: InvalidImage."""
    if url.is_base64 and not url.is_escaped:
        return await decode_base64(url.text, url.start)
    data = url.unescaped()
    return await decode_base64(data.decode("latin-1")) if url.is_base64 else data or _decode("")


async def decode_base64(text: str, start: int = 0) -> bytes:
    """Decode strictly, from ``start`` on; other requests get their turn while a large one is decoded.

    Raises: InvalidImage.
    """
    if len(text) - start <= SLICE_CHARS:
        return _decode(text[start:])
    data = io.BytesIO()
    for at in range(start, len(text), SLICE_CHARS):
        part = text[at : at + SLICE_CHARS]
        decoded = _decode(part)
        if at + SLICE_CHARS < len(text) and len(decoded) != SLICE_CHARS // 4 * 3:
            raise _broken(part)  # padding in the middle
        data.write(decoded)
        await asyncio.sleep(0)
    return data.getvalue()  # shares the memory, where bytes(bytearray) would copy it


def _decode(payload: str) -> bytes:
    if not payload:
        raise InvalidImage("image is empty; send the base64 of a JPEG, PNG or WebP file")
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError):
        raise _broken(payload) from None


def _broken(payload: str) -> InvalidImage:
    rest = "" if len(payload) <= 24 else f"... ({len(payload)} long)"
    return InvalidImage(
        f"image {shown(payload[:24])}{rest} is not valid base64; send the standard alphabet, padded, in one line"
    )
