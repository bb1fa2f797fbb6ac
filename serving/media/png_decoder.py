"""PNG samples.

The stream is inflated here, so that nothing is missing and its checksum is right; Pillow then undoes the filters of the
rows and spreads the bits. It never sees the file, and so no chunk that it could mistake for a setting.
"""

from __future__ import annotations

import zlib

import numpy as np
from PIL import Image

from serving.domain import Pixels
from serving.media.header import ImageFormat, truncated
from serving.media.png import GREY, GREY_ALPHA, PALETTE, RGB, RGB_ALPHA, PngHeader, PngPicture, read_picture
from serving.media.stored import StoredPicture

_RAW_MODES = {
    # Grey of few bits is read as indices: the transparent level is one of the levels as they are stored.
    (GREY, 1): ("P", "P;1"),
    (GREY, 2): ("P", "P;2"),
    (GREY, 4): ("P", "P;4"),
    (GREY, 8): ("L", "L"),
    (GREY, 16): ("I;16", "I;16B"),
    (RGB, 8): ("RGB", "RGB"),
    (RGB, 16): ("RGB", "RGB;16B"),
    (PALETTE, 1): ("P", "P;1"),
    (PALETTE, 2): ("P", "P;2"),
    (PALETTE, 4): ("P", "P;4"),
    (PALETTE, 8): ("P", "P"),
    (GREY_ALPHA, 8): ("LA", "LA"),
    (GREY_ALPHA, 16): ("RGBA", "LA;16B"),
    (RGB_ALPHA, 8): ("RGBA", "RGBA"),
    (RGB_ALPHA, 16): ("RGBA", "RGBA;16B"),
}
"""(colour type, depth) to Pillow's mode and the layout of a row. 16-bit samples keep their high byte, grey both."""
_LOW_BYTES = ("RGB", "RGB;16L")
"""Of 16-bit colour: read with its bytes the other way round, the high byte is the low one."""
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column, first row, and steps of both, of each pass (section 8.1)."""


def read_png(data: bytes) -> StoredPicture:
    """Decode a file.

    Raises:
        InvalidImage: broken, damaged or cut off.
        ValueError, zlib.error: broken; the text is a library's.
    """
    picture = read_picture(data)
    colour, alpha = _decode(picture)
    return StoredPicture(colour=colour, alpha=alpha, exif=picture.exif, profile=picture.profile)


def _decode(picture: PngPicture) -> tuple[Image.Image, Image.Image | None]:
    header, transparency = picture.header, picture.transparency
    # Stored blocks: unpacking them again costs a copy.
    stored = zlib.compress(_inflate(picture.coded, _num_filtered_bytes(header)), level=0)
    image = _read_rows(stored, header, *_RAW_MODES[header.colour, header.depth])
    if header.colour == PALETTE:
        return _look_up(image, picture.palette or b"", transparency)
    if header.colour == GREY:
        return _from_grey(np.asarray(image), header.depth, transparency)
    if header.colour in (GREY_ALPHA, RGB_ALPHA):
        return image.convert("RGB") if image.mode == "RGBA" else image.getchannel("L"), image.getchannel("A")
    if transparency is None:
        return image, None
    samples = np.asarray(image).astype(np.uint16)
    if header.depth == 16:
        samples = samples << 8 | np.asarray(_read_rows(stored, header, *_LOW_BYTES))
    key = np.frombuffer(transparency, ">u2") & _highest_level(header.depth)
    return image, _hide((samples == key).all(axis=-1))


def _inflate(coded: bytes, num_bytes: int) -> bytes:
    """Unpack the filtered rows of all pixels. More than that is not unpacked, and nothing to complain about."""
    inflater = zlib.decompressobj()
    rows = inflater.decompress(coded, num_bytes)
    is_longer = inflater.decompress(inflater.unconsumed_tail, 1)  # or, at the end, checks the checksum
    if len(rows) < num_bytes or not (is_longer or inflater.eof):
        raise truncated(ImageFormat.PNG)
    return rows


def _num_filtered_bytes(header: PngHeader) -> int:
    """Bytes of all rows, each with its filter type in front."""
    channels = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}[header.colour]
    passes = _ADAM7 if header.is_interlaced else ((0, 0, 1, 1),)
    total = 0
    for column, row, column_step, row_step in passes:
        width = -(-(header.width - column) // column_step)
        height = -(-(header.height - row) // row_step)
        if width > 0 and height > 0:
            total += height * (1 + -(-width * channels * header.depth // 8))
    return total


def _read_rows(stored: bytes, header: PngHeader, mode: str, raw_mode: str) -> Image.Image:
    size = (header.width, header.height)
    return Image.frombytes(mode, size, stored, "zip", raw_mode, int(header.is_interlaced))


def _highest_level(depth: int) -> int:
    return (1 << depth) - 1


def _hide(is_hidden: np.ndarray) -> Image.Image:
    return Image.fromarray(np.where(is_hidden, np.uint8(0), np.uint8(255)))


def _from_grey(levels: np.ndarray, depth: int, transparency: bytes | None) -> tuple[Image.Image, Image.Image | None]:
    highest = _highest_level(depth)
    grey: Pixels = (levels >> 8).astype(np.uint8) if depth == 16 else levels * np.uint8(255 // highest)
    alpha = None
    if transparency is not None:
        alpha = _hide(levels == int.from_bytes(transparency, "big") & highest)
    return Image.fromarray(grey), alpha


def _look_up(
    indices: Image.Image, palette: bytes, transparency: bytes | None
) -> tuple[Image.Image, Image.Image | None]:
    """Colours of indices; one past the end of the palette is black."""
    alpha = None
    if transparency is not None:
        alphas = np.frombuffer(transparency.ljust(256, b"\xff"), np.uint8)
        alpha = Image.fromarray(alphas[np.asarray(indices)])
    indices.putpalette(palette.ljust(768, b"\0"))
    return indices.convert("RGB"), alpha
