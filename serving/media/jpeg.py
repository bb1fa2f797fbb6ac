"""The layout of JPEG: segments, scans, and where the first picture ends. Decodes nothing. Source: ITU-T T.81 annex B.

A file is a row of segments, each behind a marker; a scan is followed by coded data, which runs up to the next marker.
The first picture ends at its own end marker. What follows (a camera's second picture, a phone's video, notes) is no
part of it, and neither is a segment that only describes it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from serving.errors import InvalidImage
from serving.media.header import MAX_PROFILE_BYTES, MAX_SEGMENTS, ImageFormat, ImageHeader, truncated
from serving.media.limits import MediaLimits

_TEM, _SOI, _EOI, _SOS, _DNL, _COM = 0x01, 0xD8, 0xD9, 0xDA, 0xDC, 0xFE
_BARE = (_TEM, _SOI, _EOI)
"""Markers without a payload."""
_TABLES = (0xC4, 0xDB, 0xDD)
"""Huffman codes, quantisation, restart interval."""
_PROGRESSIVE = 0xC2
_FRAMES = (0xC0, 0xC1, _PROGRESSIVE)
"""Baseline, extended sequential and progressive, Huffman coded; what the others are, no decoder here knows."""
_APP0, _APP1, _APP2, _APP14, _APP15 = 0xE0, 0xE1, 0xE2, 0xEE, 0xEF
_SAYS_NOTHING = (_TEM, _DNL, _COM, *range(_APP0, _APP15 + 1))
"""About pixels, that is; ``first_picture`` picks out what does."""
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""Neither a stuffed zero, nor a fill byte, nor a restart marker, which is part of the coded data around it."""
_MAX_STRAY_BYTES = 64 << 10
"""Fill bytes and junk before the first scan: skipped, as decoders do, but not for ever."""
_COUNTED_BYTES = 256 << 10
"""Coded data in which ``read_header`` counts scans: on a busy loop nobody waits for a look at 20 MB."""
_EXIF, _ICC = b"Exif\0\0", b"ICC_PROFILE\0"
_JFIF_SEGMENT = b"\xff\xe0\x00\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0"
_ADOBE_SEGMENT = b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0"


class _Segment(NamedTuple):
    """``marker_at``: index of its 0xFF. ``start``, ``end``: of its payload; behind a scan's, coded data follows."""

    marker: int
    marker_at: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class JpegFrame:
    """The frame header: ``components`` are the ids of its components, which some cameras do not make differ."""

    is_progressive: bool
    width: int
    height: int
    components: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class JpegPicture:
    """The first picture of a file: ``data`` is a JPEG of it with nothing else inside.

    ``scan_ends`` says where in ``data`` the coded data of each scan ends. ``exif`` and ``profile`` come from the file.
    """

    data: bytes
    frame: JpegFrame
    scan_ends: tuple[int, ...]
    exif: bytes | None
    profile: bytes | None


def read_header(data: bytes, limits: MediaLimits) -> ImageHeader:
    """Read up to the first scan, and count the scans in what comes soon after it.

    Raises:
        InvalidImage: broken, cut off, of a kind that is not decoded, or more than ``limits.max_scans``.
    """
    outline = _Outline(limits)
    for segment in _segments(data, _COUNTED_BYTES):
        outline.add(segment, data)
    frame = outline.frame()
    if outline.num_scans == 0:
        raise truncated(ImageFormat.JPEG)
    # A file of many scans may repeat them over the same few pixels for as long as its bytes last.
    is_plain = outline.num_scans == 1 and not frame.is_progressive and len(frame.components) != 4
    return ImageHeader(
        format=ImageFormat.JPEG,
        width=frame.width,
        height=frame.height,
        is_plain=is_plain and not outline.has_metadata,
        num_scans=outline.num_scans,
    )


def first_picture(data: bytes, limits: MediaLimits) -> JpegPicture:
    """Cut the first picture out of a file.

    Raises:
        InvalidImage: as ``read_header``; also if the picture has no end, or a component has no scan.
    """
    outline = _Outline(limits)
    segments = list(_segments(data, len(data)))
    for segment in segments:
        outline.add(segment, data)
    frame = outline.whole_frame()
    before = segments[: next(i for i, segment in enumerate(segments) if segment.marker == _SOS)]
    parts = [b"\xff\xd8", *_colour_segments(data, before, len(frame.components))]
    scan_ends, size = [], sum(map(len, parts))
    for segment, following in pairwise(segments):
        if segment.marker in _SAYS_NOTHING:
            continue
        part = data[segment.marker_at : segment.end]
        if segment.marker == _SOS:
            # Sequential scans have no choice here, so decoders let everything pass; but not without complaining.
            head = part if frame.is_progressive else part[:-3] + b"\0\x3f\0"
            part = head + data[segment.end : following.marker_at].rstrip(b"\xff")  # without fill bytes
            scan_ends.append(size + len(part))
        parts.append(part)
        size += len(part)
    return JpegPicture(
        data=b"".join([*parts, b"\xff\xd9"]),
        frame=frame,
        scan_ends=tuple(scan_ends),
        exif=next(_bodies(data, before, _APP1, _EXIF), None),
        profile=_join_profile(list(_bodies(data, before, _APP2, _ICC))),
    )


class _Outline:
    """What the segments so far say about the picture."""

    def __init__(self, limits: MediaLimits) -> None:
        self.num_scans = 0
        self.has_metadata = False
        self._limits = limits
        self._frame: JpegFrame | None = None
        self._is_ended = False
        self._begun: set[int] = set()

    def add(self, segment: _Segment, data: bytes) -> None:
        """Take note of the next segment; refuse what no decoder here reads."""
        marker = segment.marker
        if marker in _FRAMES:
            if self._frame is not None:
                raise InvalidImage("JPEG file has a second frame header in its first picture; send a valid JPEG file")
            self._frame = _read_frame(data[segment.start : segment.end], marker)
        elif marker == _SOS:
            self._add_scan(data[segment.start : segment.end])
        elif marker == _EOI:
            self._is_ended = True
        elif marker in (_APP1, _APP2):
            self.has_metadata = True
        elif marker == _SOI:
            raise InvalidImage("JPEG file has a second picture before its first one ends; send the whole first picture")
        elif marker not in _TABLES and marker not in _SAYS_NOTHING:
            raise _unsupported()

    def _add_scan(self, body: bytes) -> None:
        components = self.frame().components
        named = body[1:-3:2]
        if len(body) < 6 or len(body) != 4 + 2 * body[0] or not set(components) >= set(named):
            raise InvalidImage("JPEG file has a scan of components that it does not have; send a valid JPEG file")
        self.num_scans += 1
        if self.num_scans > self._limits.max_scans:
            raise InvalidImage(
                f"JPEG file has more than {self._limits.max_scans} scans, the limit; re-encode it, progressive or not"
            )
        if body[-3] == 0 or not self.frame().is_progressive:
            self._begun.update(named)

    def frame(self) -> JpegFrame:
        """The frame header, which must have come by now."""
        if self._frame is None:
            raise InvalidImage("JPEG file has no frame header before its data; send a valid JPEG file")
        return self._frame

    def whole_frame(self) -> JpegFrame:
        """The frame header of a picture that has ended, with every component begun.

        A progressive picture may leave out what would refine it: T.81 does not ask for all bits of all coefficients.
        """
        frame = self.frame()
        if not self._is_ended or self._begun != set(frame.components):
            raise truncated(ImageFormat.JPEG)
        return frame


def _segments(data: bytes, max_coded_bytes: int) -> Iterator[_Segment]:
    """Yield segments up to the end marker, or until ``max_coded_bytes`` behind the first scan's header.

    Raises:
        InvalidImage: a segment ends behind the file, or there are too many, or too much between them.
    """
    position, stop, num_stray, is_header = 2, len(data), 0, True
    for _ in range(MAX_SEGMENTS):
        if is_header:
            stop = min(len(data), position + _MAX_STRAY_BYTES - num_stray + 2)
        match = _MARKER.search(data, position, stop)
        if match is None:
            if is_header and stop < len(data):
                raise InvalidImage(
                    f"JPEG file has more than {_MAX_STRAY_BYTES} bytes between its header segments, the limit; "
                    "re-encode it"
                )
            return
        marker_at, start, marker = match.start(), match.end(), data[match.end() - 1]
        num_stray += marker_at - position
        length = 0 if marker in _BARE else int.from_bytes(data[start : start + 2], "big")
        if length < 2 and marker not in _BARE:
            raise InvalidImage("JPEG file has a segment of impossible length; send a valid JPEG file")
        position = start + length
        if position > len(data):
            raise truncated(ImageFormat.JPEG)
        yield _Segment(marker, marker_at, min(start + 2, position), position)
        if marker == _EOI:
            return
        if marker == _SOS and is_header:
            is_header, stop = False, min(len(data), position + max_coded_bytes)
    raise InvalidImage(f"JPEG file has more than {MAX_SEGMENTS} segments, the limit; re-encode it")


def _read_frame(body: bytes, marker: int) -> JpegFrame:
    if len(body) < 6 or len(body) != 6 + 3 * body[5]:
        raise InvalidImage("JPEG file has a frame header of impossible length; send a valid JPEG file")
    depth, height, width, num_components = struct.unpack_from(">BHHB", body)
    if depth != 8:
        raise _unsupported()
    if num_components not in (1, 3, 4):
        raise InvalidImage(f"JPEG file has {num_components} components; 1, 3 and 4 are understood. Re-encode it")
    # Height 0 means "told later, by a DNL marker": a size that no header limit could hold.
    if width == 0 or height == 0:
        raise InvalidImage(f"JPEG header says {width} x {height} pixels; re-encode it with its size in the header")
    return JpegFrame(marker == _PROGRESSIVE, width, height, components=body[6::3])


def _unsupported() -> InvalidImage:
    return InvalidImage("JPEG file is lossless, hierarchical, arithmetic or not 8 bits deep; re-encode it as baseline")


def _bodies(data: bytes, segments: list[_Segment], marker: int, signature: bytes) -> Iterator[bytes]:
    for segment in segments:
        if segment.marker == marker and data.startswith(signature, segment.start, segment.end):
            yield data[segment.start : segment.end]


def _colour_segments(data: bytes, segments: list[_Segment], num_components: int) -> Iterator[bytes]:
    """Yield what says in which colours the samples are, in a form that no decoder complains about.

    That JFIF is named matters, not its version; an unknown Adobe transform means what libjpeg takes it to mean.
    """
    if any(len(body) >= 14 for body in _bodies(data, segments, _APP0, b"JFIF\0")):
        yield _JFIF_SEGMENT
    transforms = [body[11] for body in _bodies(data, segments, _APP14, b"Adobe") if len(body) >= 12]
    if transforms:
        known = (0, 2) if num_components == 4 else (0, 1)
        yield _ADOBE_SEGMENT + bytes([transforms[-1] if transforms[-1] in known else known[1]])


def _join_profile(bodies: list[bytes]) -> bytes | None:
    """ICC.1 annex B.4: each part has its number and their count. Parts that do not fit together are no profile."""
    parts = {body[12]: body[14:] for body in bodies if len(body) > 14}
    is_whole = len(parts) == len(bodies) and parts.keys() == {*range(1, len(parts) + 1)}
    if not is_whole or any(body[13] != len(parts) for body in bodies):
        return None
    profile = b"".join(parts[i] for i in sorted(parts))
    return profile if 0 < len(profile) <= MAX_PROFILE_BYTES else None
