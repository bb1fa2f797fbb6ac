"""JPEG samples, or a refusal if any of them had to be made up.

libjpeg paints grey what a scan does not say, and mentions it in a warning that Pillow does not pass on. simplejpeg, the
same library under another roof, does (docs/decisions/0013).
"""

from __future__ import annotations

import io
import re

import numpy as np
import simplejpeg
from PIL import Image, JpegImagePlugin

from serving.media.header import ImageFormat, StoredPicture, truncated
from serving.media.jpeg import JpegPicture, first_picture
from serving.media.limits import MediaLimits

_COLOURS = {1: "GRAY", 3: "RGB", 4: "CMYK"}
_PADDING = "extraneous bytes before marker 0xd9"
"""What libjpeg says when all samples are there and some bytes are left: cameras pad. It says the first thing only, so
that nothing was wrong before."""
_OTHER_BITS = b"\xaa" * 16
_OTHER_INTERVALS = _OTHER_BITS + b"".join(bytes([0xFF, marker]) + _OTHER_BITS for marker in range(0xD0, 0xD8))
_RESTART = re.compile(rb"(?<!\xff)\xff++[\xd0-\xd7]")


def read_jpeg(data: bytes, limits: MediaLimits) -> StoredPicture:
    """Decode the first picture of a file.

    Raises:
        InvalidImage: broken, or not all there.
        ValueError, OSError: broken; the text is a library's.
    """
    picture = first_picture(data, limits)
    return StoredPicture(colour=_decode(picture), exif=picture.exif, profile=picture.profile)


def _decode(picture: JpegPicture) -> Image.Image:
    try:
        simplejpeg.decode_jpeg_header(picture.data)
    except ValueError:  # rare combinations of sampling factors have no name there
        return _decode_with_pillow(picture)
    colour = _COLOURS[len(picture.frame.components)]
    try:
        samples = simplejpeg.decode_jpeg(picture.data, colour)
    except ValueError as error:
        if "Insufficient memory" in str(error):
            raise MemoryError from None
        if _PADDING not in str(error):
            raise
        samples = simplejpeg.decode_jpeg(picture.data, colour, strict=False)
    if colour == "CMYK":
        # Four components are inks by Adobe's habit: stored inverted. Pillow thinks so too.
        return Image.frombuffer("CMYK", (picture.frame.width, picture.frame.height), ~samples, "raw", "CMYK", 0, 1)
    return Image.fromarray(samples if colour == "RGB" else samples[..., 0])


def _decode_with_pillow(picture: JpegPicture) -> Image.Image:
    """Decode twice: where a scan ends early, libjpeg reads zeros, or what we put there. Whole scans read neither."""
    image, other = (_open(data) for data in (picture.data, _with_other_bits(picture)))
    if not np.array_equal(np.asarray(image), np.asarray(other)):
        raise truncated(ImageFormat.JPEG)
    return image


def _open(data: bytes) -> Image.Image:
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    image.load()
    return image


def _with_other_bits(picture: JpegPicture) -> bytes:
    starts, ends = (0, *picture.scan_ends), (*picture.scan_ends, len(picture.data))
    scans = (picture.data[start:end] for start, end in zip(starts, ends, strict=True))
    return _OTHER_INTERVALS.join(_RESTART.sub(lambda match: _OTHER_BITS + match[0], scan) for scan in scans)
