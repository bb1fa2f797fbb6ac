"""Images that a server must refuse with a typed error, made without files of others."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

from loadtest.workloads.digits import draw_digit


def _truncated_png(seed: int) -> bytes:
    data, _ = draw_digit(seed, 0, image_format="png")
    return data[: len(data) // 2]


def _truncated_jpeg(seed: int) -> bytes:
    data, _ = draw_digit(seed, 0, image_format="jpeg")
    return data[: len(data) // 2]


def _text(seed: int) -> bytes:
    return f"this is no picture, whatever its name says ({seed})".encode()


def _empty(_: int) -> bytes:
    return b""


def _bomb_png(_: int) -> bytes:
    """A header that promises 60,000 x 60,000 pixels in a file of some hundred bytes."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = (_png_chunk(b"IHDR", header), _png_chunk(b"IDAT", zlib.compress(bytes(1000))), _png_chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def makers() -> dict[str, Callable[[int], bytes]]:
    """Every kind of bad image by name; each maker takes a seed."""
    return {
        "truncated_png": _truncated_png,
        "truncated_jpeg": _truncated_jpeg,
        "text_as_image": _text,
        "empty_image": _empty,
        "bomb_png": _bomb_png,
    }
