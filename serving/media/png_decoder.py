"""PNG samples.

The stream is inflated here, so that nothing is missing and its checksum is right; Pillow then undoes the filters of the
rows and spreads the bits. It never sees the file, and so no chunk that it could mistake for a setting.
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt
from PIL import Image

from serving.domain import Pixels
from serving.media.header import ImageFormat, StoredPicture, truncated
from serving.media.png import GREY, GREY_ALPHA, PALETTE, RGB, RGB_ALPHA, PngHeader, PngPicture, read_picture

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
_PIECE_BYTES = 16 << 10
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
    stored = _store(picture.coded, _num_filtered_bytes(header))
    image = _read_rows(stored, header, *_RAW_MODES[header.colour, header.depth])
    if header.colour == PALETTE:
        return _look_up(image, picture.palette or b"", transparency)
    if header.colour == GREY:
        return _from_grey(np.asarray(image), header.depth, transparency)
    if header.colour in (GREY_ALPHA, RGB_ALPHA):
        return image.convert("RGB") if image.mode == "RGBA" else image.getchannel("L"), image.getchannel("A")
    if transparency is None:
        return image, None
    # The key has 16 bits a channel, of which samples of 8 bits are compared with the low ones.
    if header.depth == 8:
        return image, _hide(_equals(image, transparency[1::2]))
    low = _read_rows(stored, header, *_LOW_BYTES)
    return image, _hide(_equals(image, transparency[::2]) & _equals(low, transparency[1::2]))


def _store(coded: bytes, num_bytes: int) -> bytes:
    """Unpack the filtered rows of all pixels, and pack them again as they are, which costs little more than a copy.

    More than ``num_bytes`` is not unpacked, and nothing to complain about.
    """
    inflater, deflater = zlib.decompressobj(), zlib.compressobj(level=0)
    stored, num_left, position = [], num_bytes, 0
    while num_left and position < len(coded):  # in pieces, so that the rows are never in memory as a whole
        rows = inflater.decompress(coded[position : position + _PIECE_BYTES], num_left)
        stored.append(deflater.compress(rows))
        num_left -= len(rows)
        position += _PIECE_BYTES
    is_longer = inflater.decompress(inflater.unconsumed_tail + coded[position:], 1)  # or sees the end, and checks it
    if num_left or not (is_longer or inflater.eof):
        raise truncated(ImageFormat.PNG)
    return b"".join([*stored, deflater.flush()])


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


def _equals(rgb: Image.Image, colour: bytes) -> npt.NDArray[np.bool_]:
    """Where all three channels are those of ``colour``. One by one: numpy is slow at reducing over three."""
    samples = np.asarray(rgb)
    is_equal: npt.NDArray[np.bool_] = samples[..., 0] == colour[0]
    for channel in (1, 2):
        is_equal &= samples[..., channel] == colour[channel]
    return is_equal


def _hide(is_hidden: npt.NDArray[np.bool_]) -> Image.Image:
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
