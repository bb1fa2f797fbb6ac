"""What a file is, from its first bytes: format, size, and what a decoder would have to do. Decodes nothing.

The signature decides; content types and file names are never asked. Sources of the layouts: ITU-T T.81 (JPEG) annex B,
PNG third edition (W3C) section 5 and 11, the WebP container specification (RFC 9649).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum

from serving.errors import InvalidImage, UnsupportedMediaType
from serving.media.limits import MediaLimits

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_MAX_SEGMENTS = 2_000
"""Header segments walked before giving up: bounds the time spent on a file made of empty ones."""

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


class ImageFormat(Enum):
    """Formats that are decoded; the value is Pillow's name."""

    JPEG = "JPEG"
    PNG = "PNG"
    WEBP = "WEBP"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageHeader:
    """What the header says. ``is_plain``: baseline coded, no EXIF or ICC inside, so the cost follows from the size."""

    format: ImageFormat
    width: int
    height: int
    bit_depth: int
    is_plain: bool

    @property
    def num_pixels(self) -> int:
        """Area as stored."""
        return self.width * self.height


def probe(data: bytes, limits: MediaLimits) -> ImageHeader:
    """Read and check the header of an untrusted file.

    Raises:
        UnsupportedMediaType: not JPEG, PNG or WebP.
        ImageTooLarge: bytes, sides or area over the limit, by what the header claims.
        InvalidImage: empty, broken header, animated, too small or too elongated.
    """
    limits.check_bytes(len(data))
    header = _read_header(data)
    limits.check_size(header.width, header.height)
    return header


def is_tiny(header: ImageHeader, num_bytes: int, limits: MediaLimits) -> bool:
    """Whether decoding in place is bounded tightly enough: few pixels, few bytes, plain coding."""
    return header.is_plain and header.num_pixels <= limits.tiny_pixels and num_bytes <= limits.tiny_bytes


def _read_header(data: bytes) -> ImageHeader:
    if data.startswith(b"\xff\xd8\xff"):
        return _read_jpeg(data)
    if data.startswith(_PNG_SIGNATURE):
        return _read_png(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _read_webp(data)
    raise UnsupportedMediaType(f"image is {_guess(data)}; send a JPEG, PNG or WebP file")


def _guess(data: bytes) -> str:
    for signature, name in _KNOWN_OTHERS:
        if data.startswith(signature):
            return f"a {name} file"
    if data[4:8] == b"ftyp":
        return "an AVIF, HEIC or MP4 file"
    return "of an unknown format"


def _truncated(what: str) -> InvalidImage:
    return InvalidImage(f"{what} file ends inside its header; send the whole file")


def _read_jpeg(data: bytes) -> ImageHeader:
    position, is_plain = 2, True
    for _ in range(_MAX_SEGMENTS):
        position = _skip_fill(data, position)
        marker, start = data[position], position + 1
        if marker == 0xD8 or 0xD0 <= marker <= 0xD7 or marker == 0x01:
            position = start
            continue
        if marker in (0xD9, 0xDA):
            raise InvalidImage("JPEG file has no frame header before its data; send a valid JPEG file")
        if start + 2 > len(data):
            raise _truncated("JPEG")
        length = int.from_bytes(data[start : start + 2], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return _read_jpeg_frame(data[start + 2 : start + length], marker, is_plain)
        if length < 2:
            raise InvalidImage("JPEG file has a segment of impossible length; send a valid JPEG file")
        is_plain &= marker not in (0xE1, 0xE2)
        position = start + length
    raise InvalidImage(f"JPEG file has more than {_MAX_SEGMENTS} header segments, the limit; re-encode it")


def _skip_fill(data: bytes, position: int) -> int:
    """Return the index of the marker code that follows one or more 0xFF bytes at ``position``."""
    if position >= len(data):
        raise _truncated("JPEG")
    if data[position] != 0xFF:
        raise InvalidImage("JPEG file has bytes between its header segments; send a valid JPEG file")
    end = position + 1
    while end < len(data) and data[end] == 0xFF:
        end += 1
        if end - position > 256:
            raise InvalidImage("JPEG file has more than 256 fill bytes, the limit; re-encode it")
    if end >= len(data):
        raise _truncated("JPEG")
    return end


def _read_jpeg_frame(frame: bytes, marker: int, is_plain: bool) -> ImageHeader:
    if len(frame) < 6:
        raise _truncated("JPEG")
    depth, height, width, components = struct.unpack_from(">BHHB", frame)
    if marker not in (0xC0, 0xC1, 0xC2) or depth != 8:
        raise InvalidImage(
            "JPEG file is lossless, hierarchical, arithmetic or not 8 bits deep; re-encode it as baseline"
        )
    if components not in (1, 3, 4):
        raise InvalidImage(f"JPEG file has {components} components; 1, 3 and 4 are understood. Re-encode it")
    # Height 0 means "told later, by a DNL marker": a size that no header limit could hold.
    if width == 0 or height == 0:
        raise InvalidImage(f"JPEG header says {width} x {height} pixels; re-encode it with its size in the header")
    # A progressive file may repeat scans over the same few pixels for as long as its bytes last.
    is_plain &= marker != 0xC2 and components != 4
    return ImageHeader(format=ImageFormat.JPEG, width=width, height=height, bit_depth=depth, is_plain=is_plain)


def _read_png(data: bytes) -> ImageHeader:
    if len(data) < 33:
        raise _truncated("PNG")
    length, kind, width, height, depth, colour, _, _, interlace = struct.unpack_from(">I4sIIBBBBB", data, 8)
    if kind != b"IHDR" or length != 13:
        raise InvalidImage("PNG file does not begin with an IHDR chunk; send a valid PNG file")
    if depth not in _PNG_DEPTHS.get(colour, ()) or interlace > 1 or width == 0 or height == 0:
        raise InvalidImage(
            "PNG header has an impossible size, bit depth, colour type or interlace method; re-encode it"
        )
    return ImageHeader(
        format=ImageFormat.PNG,
        width=width,
        height=height,
        bit_depth=depth,
        is_plain=_png_is_plain(data),
    )


def _png_is_plain(data: bytes) -> bool:
    """Walk the chunks in front of the pixels. Refuses animations."""
    position, is_plain = 33, True
    for _ in range(_MAX_SEGMENTS):
        if position + 8 > len(data):
            raise _truncated("PNG")
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"IDAT":
            return is_plain
        if kind == b"acTL":
            raise _animated("PNG")
        is_plain &= kind in (b"PLTE", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"bKGD", b"sBIT", b"tIME")
        position += 12 + length
    raise InvalidImage(f"PNG file has more than {_MAX_SEGMENTS} chunks before its pixels, the limit; re-encode it")


def _animated(what: str) -> InvalidImage:
    return InvalidImage(f"{what} file is animated; the limit is 1 frame. Send one frame as a still image")


def _read_webp(data: bytes) -> ImageHeader:
    chunks = _webp_chunks(data)
    first = chunks[0][0]
    if first != b"VP8X":
        width, height = _webp_bitstream_size(*chunks[0])
        return ImageHeader(format=ImageFormat.WEBP, width=width, height=height, bit_depth=8, is_plain=True)
    body = chunks[0][1]
    if len(body) < 10:
        raise _truncated("WebP")
    if body[0] & 0x02 or any(kind in (b"ANIM", b"ANMF") for kind, _ in chunks):
        raise _animated("WebP")
    width, height = (1 + int.from_bytes(body[i : i + 3], "little") for i in (4, 7))
    inner = next((chunk for chunk in chunks if chunk[0] in (b"VP8 ", b"VP8L")), None)
    if inner is not None and _webp_bitstream_size(*inner) != (width, height):
        raise InvalidImage("WebP file's canvas and picture differ in size; re-encode it")
    return ImageHeader(format=ImageFormat.WEBP, width=width, height=height, bit_depth=8, is_plain=not body[0] & 0x2C)


def _webp_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """List (kind, first 16 bytes of the body) of the chunks inside the RIFF container, which must be all there."""
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data) or len(data) < 20:
        raise InvalidImage(f"WebP file has {len(data)} bytes of {max(end, 20)}; send the whole file")
    chunks: list[tuple[bytes, bytes]] = []
    position = 12
    while position + 8 <= end:
        kind, length = struct.unpack_from("<4sI", data, position)
        chunks.append((kind, data[position + 8 : position + 24]))
        position += 8 + length + (length & 1)
        if len(chunks) > _MAX_SEGMENTS:
            raise InvalidImage(f"WebP file has more than {_MAX_SEGMENTS} chunks, the limit; re-encode it")
    if not chunks:
        raise _truncated("WebP")
    return chunks


def _webp_bitstream_size(kind: bytes, body: bytes) -> tuple[int, int]:
    if kind == b"VP8 " and len(body) >= 10 and body[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L" and len(body) >= 5 and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1
    raise InvalidImage("WebP file has no readable picture header; send a valid WebP file")
