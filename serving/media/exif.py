"""The one EXIF field that changes what people see: orientation. Parsed here, so that it is parsed one way.

Pillow also looks for an orientation in XMP and in legacy PNG text; browsers do not, and a model must see what the
sender saw. Source: TIFF 6.0 section 2 and EXIF 2.32 tag 0x0112.
"""

from __future__ import annotations

import struct
from typing import Final

from PIL import Image

_ORIENTATION_TAG = 0x0112
_SHORT = 3
_TRANSPOSE: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_orientation(exif: bytes | None) -> int:
    """Return 1 to 8; 1, upright, when there is no readable orientation. Never raises."""
    if not exif:
        return 1
    try:
        value = _find_orientation(exif.removeprefix(b"Exif\0\0"))
    except struct.error:
        return 1
    return value if 1 <= value <= 8 else 1


def _find_orientation(tiff: bytes) -> int:
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    (num_entries,) = struct.unpack_from(order + "H", tiff, start)
    for i in range(num_entries):
        tag, kind, count, value = struct.unpack_from(order + "HHIH", tiff, start + 2 + 12 * i)
        if tag == _ORIENTATION_TAG:
            return int(value) if (kind, count) == (_SHORT, 1) else 1
    return 1


def apply_orientation(image: Image.Image, orientation: int) -> Image.Image:
    """Turn and mirror a stored image so that it is upright."""
    return image if orientation == 1 else image.transpose(_TRANSPOSE[orientation])
