"""The layout of PNG: chunks, their checksums, and which of them say anything about pixels. Decodes nothing.

Only critical chunks, and the few ancillary ones that change what a person sees, are looked into. An ancillary chunk
that is damaged, misplaced or of no sense is as good as absent (PNG third edition, section 13.3), whatever its name.
Source: PNG third edition (W3C), sections 5, 11 and 13.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from serving.errors import InvalidImage
from serving.media.header import MAX_PROFILE_BYTES, MAX_SEGMENTS, ImageFormat, ImageHeader, truncated

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
_DEPTHS = {GREY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), GREY_ALPHA: (8, 16), RGB_ALPHA: (8, 16)}
_CHEAP = (b"PLTE", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"bKGD", b"sBIT", b"tIME")
_MAX_CHUNKS = 100_000
"""Of a whole file; the smallest that encoders write hold some kilobytes each."""


class _Chunk(NamedTuple):
    """``start``, ``end``: of the body, which a checksum over kind and body follows."""

    kind: bytes
    start: int
    end: int


class PngHeader(NamedTuple):
    """The IHDR chunk: size in pixels, bits of a sample, colour type."""

    width: int
    height: int
    depth: int
    colour: int
    is_interlaced: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PngPicture:
    """What decides about pixels.

    ``coded``: the zlib stream of the pixel data. ``palette``: RGB triples. ``transparency``: the body of tRNS, of the
    length that the colour type asks for. ``exif`` and ``profile`` (ICC) come from the file.
    """

    header: PngHeader
    coded: bytes
    palette: bytes | None
    transparency: bytes | None
    exif: bytes | None
    profile: bytes | None


def read_header(data: bytes) -> ImageHeader:
    """Read up to the first pixel data.

    Raises:
        InvalidImage: broken, cut off, or an animation.
    """
    header, is_plain = _read_ihdr(data), True
    for i, chunk in enumerate(_chunks(data)):
        if chunk.kind == b"IDAT":
            break
        if i == MAX_SEGMENTS:
            raise InvalidImage(
                f"PNG file has more than {MAX_SEGMENTS} chunks before its pixels, the limit; re-encode it"
            )
        if chunk.kind == b"acTL" and _num_frames(data, chunk) > 1:
            raise InvalidImage("PNG file is animated; the limit is 1 frame. Send one frame as a still image")
        is_plain &= chunk.kind in _CHEAP
    return ImageHeader(format=ImageFormat.PNG, width=header.width, height=header.height, is_plain=is_plain)


def read_picture(data: bytes) -> PngPicture:
    """Check a file from its first to its last chunk, and pick out what decides about its pixels.

    Raises:
        InvalidImage: cut off, a critical chunk is damaged, missing or not known.
    """
    header, coded, palette = _read_ihdr(data), list[bytes](), None
    found: dict[bytes, bytes] = {}
    is_after = False
    for chunk in _chunks(data):
        if _is_critical(chunk):
            _check_critical(data, chunk)
        body = slice(chunk.start, chunk.end)
        if chunk.kind == b"IDAT" and not is_after:
            coded.append(data[body])
            continue
        is_after = bool(coded)
        if chunk.kind == b"PLTE" and not is_after and palette is None:
            palette = data[body]
        elif chunk.kind in found or not _is_in_place(chunk.kind, header.colour, is_after, palette):
            continue
        elif _is_intact(data, chunk):
            found[chunk.kind] = data[body]
    if header.colour == PALETTE and (not palette or len(palette) % 3 or len(palette) > 768):
        raise InvalidImage("PNG file has no readable palette; re-encode it")
    return PngPicture(
        header=header,
        coded=b"".join(coded),
        palette=palette,
        transparency=_fitting_transparency(found.get(b"tRNS"), header.colour, palette),
        exif=found.get(b"eXIf"),
        profile=_read_profile(found.get(b"iCCP", b"")),
    )


def _chunks(data: bytes) -> Iterator[_Chunk]:
    """Yield the chunks after IHDR up to IEND, which is left out; what follows it is no part of the file."""
    position = 33
    for _ in range(_MAX_CHUNKS):
        if position + 12 > len(data):
            raise truncated(ImageFormat.PNG)
        length, kind = struct.unpack_from(">I4s", data, position)
        chunk = _Chunk(kind, position + 8, position + 8 + length)
        position = chunk.end + 4
        if not kind.isalpha():
            raise InvalidImage("PNG file has a chunk without a name; send a valid PNG file")
        if position > len(data):
            raise truncated(ImageFormat.PNG)
        if kind == b"IEND":
            _check_critical(data, chunk)
            return
        yield chunk
    raise InvalidImage(f"PNG file has more than {_MAX_CHUNKS} chunks, the limit; re-encode it")


def _read_ihdr(data: bytes) -> PngHeader:
    if len(data) < 33:
        raise truncated(ImageFormat.PNG)
    length, kind, width, height, depth, colour, compression, filtering, interlace = struct.unpack_from(
        ">I4sIIBBBBB", data, 8
    )
    if kind != b"IHDR" or length != 13:
        raise InvalidImage("PNG file does not begin with an IHDR chunk; send a valid PNG file")
    _check_critical(data, _Chunk(kind, 16, 29))
    if depth not in _DEPTHS.get(colour, ()) or compression or filtering or interlace > 1 or width == 0 or height == 0:
        raise InvalidImage("PNG header has an impossible size, bit depth, colour type or method; re-encode it")
    return PngHeader(width, height, depth, colour, interlace == 1)


def _is_critical(chunk: _Chunk) -> bool:
    return chunk.kind[0] & 0x20 == 0


def _is_intact(data: bytes, chunk: _Chunk) -> bool:
    checksum = zlib.crc32(memoryview(data)[chunk.start - 4 : chunk.end])
    return checksum == int.from_bytes(data[chunk.end : chunk.end + 4], "big")


def _check_critical(data: bytes, chunk: _Chunk) -> None:
    name = chunk.kind.decode()
    if chunk.kind not in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
        raise InvalidImage(f"PNG file has a critical chunk {name} that is not known; re-encode it")
    if not _is_intact(data, chunk):
        raise InvalidImage(f"PNG file is damaged: the checksum of a chunk {name} is wrong. Send the file again")


def _is_in_place(kind: bytes, colour: int, is_after_pixels: bool, palette: bytes | None) -> bool:
    """Whether an ancillary chunk is one that matters, where it may stand."""
    if kind == b"tRNS":
        return not is_after_pixels and (colour != PALETTE or palette is not None)
    if kind == b"iCCP":
        return not is_after_pixels and palette is None
    return kind == b"eXIf"


def _fitting_transparency(body: bytes | None, colour: int, palette: bytes | None) -> bytes | None:
    if body is None:
        return None
    if colour == PALETTE:
        return body if palette and 0 < len(body) <= len(palette) // 3 else None
    return body if len(body) == {GREY: 2, RGB: 6}.get(colour) else None


def _read_profile(body: bytes) -> bytes | None:
    """Unpack an iCCP chunk: name, zero, method zero, zlib stream."""
    _, _, rest = body.partition(b"\0")
    if not rest.startswith(b"\0"):
        return None
    inflater = zlib.decompressobj()
    try:
        profile = inflater.decompress(rest[1:], MAX_PROFILE_BYTES + 1)
    except zlib.error:
        return None
    return profile if inflater.eof and len(profile) <= MAX_PROFILE_BYTES else None


def _num_frames(data: bytes, chunk: _Chunk) -> int:
    """Frames that an acTL chunk announces; browsers show the still picture if it is damaged."""
    is_readable = chunk.end - chunk.start == 8 and _is_intact(data, chunk)
    return int.from_bytes(data[chunk.start : chunk.start + 4], "big") if is_readable else 1
