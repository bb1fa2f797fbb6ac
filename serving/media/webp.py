"""WebP: which chunks are the picture, and its samples. Sources: RFC 9649 and libwebp's demuxer, which browsers use.

The decoder is given the chunks of the picture in a container of our own: a second picture, unknown chunks, and metadata
that is damaged or lies about itself, stay outside.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

from PIL import WebPImagePlugin

from serving.errors import InvalidImage
from serving.media.header import MAX_PROFILE_BYTES, MAX_SEGMENTS, ImageFormat, ImageHeader, StoredPicture, truncated

_ANIMATED, _HAS_EXIF, _HAS_ALPHA, _HAS_PROFILE = 0x02, 0x08, 0x10, 0x20
_PICTURES = (b"VP8 ", b"VP8L")


@dataclass(frozen=True, slots=True)
class _Container:
    """Index ranges of the bodies of the first chunk of each kind; alpha counts only in front of the picture.

    ``flags`` and ``canvas`` (width, height) are from the extended header; 0 and None without one.
    """

    flags: int
    canvas: tuple[int, int] | None
    picture: bytes
    ranges: dict[bytes, tuple[int, int]]


def read_header(data: bytes) -> ImageHeader:
    """Read chunk headers and the picture's own.

    Raises:
        InvalidImage: broken, cut off, or an animation.
    """
    container = _read_container(data)
    width, height = _picture_size(data, container)
    if container.canvas not in (None, (width, height)):
        raise InvalidImage("WebP file's canvas and picture differ in size; re-encode it")
    is_plain = not container.flags & (_HAS_EXIF | _HAS_PROFILE)
    return ImageHeader(format=ImageFormat.WEBP, width=width, height=height, is_plain=is_plain)


def read_webp(data: bytes) -> StoredPicture:
    """Decode a file.

    Raises:
        InvalidImage: broken, or cut off.
        OSError: broken; the text is a library's.
    """
    container = _read_container(data)
    width, height = _picture_size(data, container)
    image = WebPImagePlugin.WebPImageFile(io.BytesIO(_rebuild(data, container, width, height)))
    image.load()
    alpha = image.getchannel("A") if image.mode == "RGBA" else None
    profile = _metadata(data, container, b"ICCP", _HAS_PROFILE)
    return StoredPicture(
        colour=image.convert("RGB"),
        alpha=alpha,
        exif=_metadata(data, container, b"EXIF", _HAS_EXIF),
        profile=profile if profile and len(profile) <= MAX_PROFILE_BYTES else None,
    )


def _read_container(data: bytes) -> _Container:
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data) or len(data) < 20:
        raise InvalidImage(f"WebP file has {len(data)} bytes of {max(end, 20)}; send the whole file")
    ranges: dict[bytes, tuple[int, int]] = {}
    position, picture = 12, b""
    for i in range(MAX_SEGMENTS + 1):
        if position + 8 > end:
            break
        if i == MAX_SEGMENTS:
            raise InvalidImage(f"WebP file has more than {MAX_SEGMENTS} chunks, the limit; re-encode it")
        kind, length = struct.unpack_from("<4sI", data, position)
        start, position = position + 8, position + 8 + length + (length & 1)
        if start + length > end:
            break
        if picture and kind in (*_PICTURES, b"ALPH"):
            continue
        picture = kind if kind in _PICTURES else picture
        ranges.setdefault(kind, (start, start + length))
    flags, canvas = _read_extended(data, ranges)
    if not picture:
        raise truncated(ImageFormat.WEBP)
    return _Container(flags, canvas, picture, ranges)


def _read_extended(data: bytes, ranges: dict[bytes, tuple[int, int]]) -> tuple[int, tuple[int, int] | None]:
    """Read the VP8X chunk, which counts only as the first one."""
    start, end = ranges.get(b"VP8X", (0, 0))
    if start != 20 or end - start < 10:
        return 0, None
    if data[start] & _ANIMATED:
        raise InvalidImage("WebP file is animated; the limit is 1 frame. Send one frame as a still image")
    width, height = (1 + int.from_bytes(data[start + i : start + i + 3], "little") for i in (4, 7))
    return data[start], (width, height)


def _picture_size(data: bytes, container: _Container) -> tuple[int, int]:
    start, end = container.ranges[container.picture]
    body = data[start : min(end, start + 10)]
    if container.picture == b"VP8 " and len(body) == 10 and body[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    if container.picture == b"VP8L" and len(body) >= 5 and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1
    raise InvalidImage("WebP file has no readable picture header; send a valid WebP file")


def _rebuild(data: bytes, container: _Container, width: int, height: int) -> bytes:
    kinds = [container.picture]
    extended = b""
    if b"ALPH" in container.ranges and container.picture == b"VP8 ":
        sides = (side.to_bytes(3, "little") for side in (width - 1, height - 1))
        extended = _chunk(b"VP8X", bytes([_HAS_ALPHA, 0, 0, 0]) + b"".join(sides))
        kinds = [b"ALPH", container.picture]
    body = b"WEBP" + extended + b"".join(_chunk(kind, data[slice(*container.ranges[kind])]) for kind in kinds)
    return _chunk(b"RIFF", body)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack("<4sI", kind, len(body)) + body + b"\0" * (len(body) & 1)


def _metadata(data: bytes, container: _Container, kind: bytes, flag: int) -> bytes | None:
    """Metadata counts where the header announces it, as in browsers."""
    is_announced = container.flags & flag and kind in container.ranges
    return data[slice(*container.ranges[kind])] if is_announced else None
