"""What a file is, from its first bytes: format, size, and what a decoder would have to do. Decodes nothing.

The signature decides; content types and file names are never asked. This runs on the event loop: whatever is sent, the
work is bounded by a number of segments and some hundred kilobytes, not by the length of the file.
"""

from __future__ import annotations

from serving.errors import UnsupportedMediaType
from serving.media import jpeg, png, webp
from serving.media.header import ImageHeader
from serving.media.limits import MediaLimits

_KNOWN_OTHERS = (
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x0a", "JPEG XL"),
    (b"%PDF", "PDF"),
    (b"<svg", "SVG"),
    (b"<?xml", "XML"),
    (b"8BPS", "Photoshop"),
)


def probe(data: bytes, limits: MediaLimits) -> ImageHeader:
    """Read and check the header of an untrusted file.

    Raises:
        UnsupportedMediaType: not JPEG, PNG or WebP.
        ImageTooLarge: bytes, sides or area over the limit, by what the header claims.
        InvalidImage: empty, broken header, animated, too many scans, too small or too elongated.
    """
    limits.check_bytes(len(data))
    header = _read_header(data, limits)
    limits.check_size(header.width, header.height)
    return header


def is_tiny(header: ImageHeader, num_bytes: int, limits: MediaLimits) -> bool:
    """Whether decoding in place is bounded tightly enough: few pixels, few bytes, plain coding."""
    return header.is_plain and header.num_pixels <= limits.tiny_pixels and num_bytes <= limits.tiny_bytes


def _read_header(data: bytes, limits: MediaLimits) -> ImageHeader:
    if data.startswith(b"\xff\xd8\xff"):
        return jpeg.read_header(data, limits)
    if data.startswith(png.SIGNATURE):
        return png.read_header(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return webp.read_header(data)
    raise UnsupportedMediaType(f"image is {_guess(data)}; send a JPEG, PNG or WebP file")


def _guess(data: bytes) -> str:
    for signature, name in _KNOWN_OTHERS:
        if data.startswith(signature):
            return f"a {name} file"
    if data[4:8] == b"ftyp":
        return "an AVIF, HEIC or MP4 file"
    return "of an unknown format"
