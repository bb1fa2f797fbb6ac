"""Image files made in code, good and bad. No test logic."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

from tests.support import image_cases, jpeg_files

Array = npt.NDArray[np.uint8]


def gradient(height: int, width: int) -> Array:
    """RGB without symmetry, so that every flip and turn shows."""
    y, x = np.mgrid[0:height, 0:width]
    channels = (x * 200 // max(width - 1, 1), y * 200 // max(height - 1, 1), 30 + (x + 2 * y) * 20 % 100)
    return np.stack(channels, axis=-1).astype(np.uint8)


def noise(height: int, width: int, seed: int = 0) -> Array:
    """Random RGB: compresses badly."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encode(image: Array | Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    """Encode with Pillow."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    stream = io.BytesIO()
    picture.save(stream, image_format, **options)
    return stream.getvalue()


def exif_orientation(orientation: int, order: str = "<") -> bytes:
    """Raw EXIF with nothing but an orientation."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return b"Exif\0\0" + head + struct.pack(order + "HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk with its checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """PNG from raw filtered rows; ``extra`` are chunks before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def png_bomb(width: int = 60_000, height: int = 60_000) -> bytes:
    """A small file whose header claims a huge image."""
    return png(width, height, 8, 2, b"\0" * 1000)


def grey16_png(levels: npt.NDArray[np.uint16], transparent: int | None = None) -> bytes:
    """16-bit grey."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    extra = b"" if transparent is None else png_chunk(b"tRNS", struct.pack(">H", transparent))
    return png(levels.shape[1], levels.shape[0], 16, 0, rows, extra)


def rgb16_png(levels: npt.NDArray[np.uint16], extra: bytes = b"") -> bytes:
    """16-bit colour, shape (H, W, 3)."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    return png(levels.shape[1], levels.shape[0], 16, 2, rows, extra)


def animated(image_format: str) -> bytes:
    """Two frames, as PNG, WEBP or GIF."""
    frames = [Image.fromarray(noise(16, 16, seed)) for seed in (1, 2)]
    return encode(frames[0], image_format, save_all=True, append_images=frames[1:], duration=50)


def swapped_profile() -> bytes:
    """An ICC profile with red and green primaries exchanged: pixels must change visibly."""
    raw = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    (count,) = struct.unpack_from(">I", raw, 128)
    tags = {bytes(raw[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, green = tags[b"rXYZ"], tags[b"gXYZ"]
    raw[red + 4 : red + 12], raw[green + 4 : green + 12] = raw[green + 4 : green + 12], raw[red + 4 : red + 12]
    return bytes(raw)


def bad_files() -> dict[str, tuple[bytes, str]]:
    """Name to (bytes, code of the error that it must meet) under the default limits."""
    good_png, good_jpeg = encode(gradient(40, 50)), encode(gradient(40, 50), "JPEG")
    good_webp = encode(gradient(40, 50), "WEBP")
    return {
        "empty": (b"", "invalid_image"),
        "text": (b"I am not a picture, whatever my name says\n" * 20, "unsupported_media_type"),
        "gif": (encode(gradient(40, 50), "GIF"), "unsupported_media_type"),
        "bmp": (encode(gradient(40, 50), "BMP"), "unsupported_media_type"),
        "tiff": (encode(gradient(40, 50), "TIFF"), "unsupported_media_type"),
        "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported_media_type"),
        "truncated_png": (good_png[: len(good_png) // 2], "invalid_image"),
        "truncated_jpeg": (good_jpeg[: len(good_jpeg) // 2], "invalid_image"),
        "truncated_webp": (good_webp[: len(good_webp) // 2], "invalid_image"),
        "png_signature_only": (good_png[:8], "invalid_image"),
        "jpeg_signature_only": (good_jpeg[:3], "invalid_image"),
        "bomb_png": (png_bomb(), "image_too_large"),
        "wide_bomb_png": (png_bomb(2**31 - 1, 2**31 - 1), "image_too_large"),
        "one_pixel_wide": (encode(gradient(40, 1)), "invalid_image"),
        "one_pixel": (encode(gradient(1, 1)), "invalid_image"),
        "elongated": (encode(gradient(4, 1000)), "invalid_image"),
        "animated_png": (animated("PNG"), "invalid_image"),
        "animated_webp": (animated("WEBP"), "invalid_image"),
        "png_with_a_wrong_checksum": (image_cases.load("png-idat-wrong-crc.png"), "invalid_image"),
        "jpeg_cut_with_an_end_marker": (image_cases.load("jpeg-cut-with-end-marker.jpg"), "invalid_image"),
        "jpeg_of_many_scans": (
            jpeg_files.with_scans(encode(gradient(40, 50), "JPEG", progressive=True), 101),
            "invalid_image",
        ),
        "corrupt_png_pixels": (good_png.replace(b"IDATx", b"IDATy"), "invalid_image"),
    }
