"""JPEG files made by hand: segments, and a small encoder for what Pillow does not write. No test logic."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence

import numpy as np

_DC_COUNTS = bytes([0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0])
_DC_SIZES = bytes(range(12))
END = b"\xff\xd9"


def segment(marker: int, body: bytes) -> bytes:
    """One segment with its length."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def with_segments(jpeg: bytes, *segments: bytes) -> bytes:
    """Put segments right behind the start marker."""
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def end_of_first_picture(jpeg: bytes) -> int:
    """Index behind the end marker, by walking markers; for files without oddities."""
    position = 2
    while jpeg[position + 1] != 0xD9:
        position += 2 + int.from_bytes(jpeg[position + 2 : position + 4], "big")
        if not (jpeg[position] == 0xFF and jpeg[position + 1] not in (0, *range(0xD0, 0xD8))):
            position = re.compile(rb"\xff[^\x00\xd0-\xd7]").search(jpeg, position).start()  # type: ignore[union-attr]
    return position + 2


def scans_of(jpeg: bytes) -> list[int]:
    """Indices of scan headers; for files without metadata."""
    return [match.start() for match in re.finditer(rb"\xff\xda", jpeg)]


def with_scans(progressive: bytes, number: int) -> bytes:
    """The file with its last scan, a refinement, so often that there are ``number`` scans."""
    last = progressive.rindex(b"\xff\xc4")
    return progressive[:last] + progressive[last:-2] * (number - len(scans_of(progressive)) + 1) + END


def flat_blocks(
    width: int,
    height: int,
    factors: Sequence[tuple[int, int]],
    *,
    seed: int = 0,
    ids: Sequence[int] = (1, 2, 3, 4),
    restart_interval: int = 0,
) -> bytes:
    """Baseline JPEG of random flat blocks, with any (horizontal, vertical) sampling factors, in one scan."""
    rng = np.random.default_rng(seed)
    columns = -(-width // (8 * max(h for h, _ in factors)))
    rows = -(-height // (8 * max(v for _, v in factors)))
    intervals, bits, before = [], "", [0] * len(factors)
    for unit in range(rows * columns):
        if restart_interval and unit and unit % restart_interval == 0:
            intervals.append(bits)
            bits, before = "", [0] * len(factors)
        for i, (horizontal, vertical) in enumerate(factors):
            for _ in range(horizontal * vertical):
                level = int(rng.integers(-60, 60))
                bits += _difference(level - before[i]) + "0"  # and no other coefficients
                before[i] = level
    coded = b"".join(
        _stuffed(interval) + bytes([0xFF, 0xD0 + i % 8]) for i, interval in enumerate(intervals)
    ) + _stuffed(bits)
    named = list(zip(ids, factors, strict=False))
    frame = b"".join(bytes([name, h << 4 | v, 0]) for name, (h, v) in named)
    return (
        b"\xff\xd8"
        + segment(0xDB, b"\0" + bytes([8] * 64))
        + segment(0xC0, struct.pack(">BHHB", 8, height, width, len(factors)) + frame)
        + segment(0xC4, b"\0" + _DC_COUNTS + _DC_SIZES + b"\x10" + bytes([1] + [0] * 15) + b"\0")
        + (segment(0xDD, struct.pack(">H", restart_interval)) if restart_interval else b"")
        + segment(0xDA, bytes([len(factors)]) + b"".join(bytes([name, 0]) for name, _ in named) + b"\0\x3f\0")
        + coded
        + END
    )


def _difference(value: int) -> str:
    size = abs(value).bit_length()
    extra = format(value if value > 0 else value + (1 << size) - 1, f"0{size}b") if size else ""
    return _dc_code(size) + extra


def _dc_code(size: int) -> str:
    code, index = 0, 0
    for length, count in enumerate(_DC_COUNTS, 1):
        if size < index + count:
            return format(code + size - index, f"0{length}b")
        code, index = (code + count) << 1, index + count
    raise ValueError(size)


def _stuffed(bits: str) -> bytes:
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
