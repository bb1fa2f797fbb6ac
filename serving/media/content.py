"""The identity of an image: a hash of its canonical pixels, computed by the server and never taken from a client."""

from __future__ import annotations

import hashlib
import struct

from serving.domain import Pixels

FORMAT_VERSION = b"vireo-rgb8-2"
"""Changes whenever decoding may give other pixels for the same file (docs of ``serving.media.decode``)."""


def content_sha256(rgb: Pixels) -> bytes:
    """Hash an image, shape (H, W, 3), uint8: version, mode, size and every pixel. 32 bytes.

    The size is part of it: the same bytes in another shape are another image.
    """
    height, width, _ = rgb.shape
    digest = hashlib.sha256(FORMAT_VERSION + struct.pack("<3sII", b"RGB", height, width))
    digest.update(rgb.data if rgb.flags.c_contiguous else rgb.tobytes())
    return digest.digest()
