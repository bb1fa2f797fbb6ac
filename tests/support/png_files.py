"""PNG files from samples, of every colour type, depth, filter and interlacing. No test logic."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import numpy.typing as npt

from tests.support.media_files import png_chunk

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
KINDS = [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16), (3, 1), (3, 2), (3, 4), (3, 8), (4, 8), (4, 16)]
KINDS += [(6, 8), (6, 16)]
"""(colour type, depth): all that there are."""
Samples = npt.NDArray[np.uint16]
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def random_samples(height: int, width: int, colour: int, depth: int, seed: int = 0) -> Samples:
    """(H, W, channels), of the whole range."""
    shape = (height, width, CHANNELS[colour])
    return np.random.default_rng(seed).integers(0, 1 << depth, shape).astype(np.uint16)


def ihdr(height: int, width: int, colour: int, depth: int, interlaced: bool = False) -> bytes:
    """The first chunk."""
    return png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))


def coded(samples: Samples, colour: int, depth: int, interlaced: bool = False) -> bytes:
    """The zlib stream of the pixels. Rows take the five filters in turn."""
    return zlib.compress(filtered(samples, colour, depth, interlaced))


def filtered(samples: Samples, colour: int, depth: int, interlaced: bool = False) -> bytes:
    """Filtered rows of all passes."""
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    parts = (samples[row::row_step, column::column_step] for column, row, column_step, row_step in passes)
    return b"".join(_filter_rows(_pack(part, depth), CHANNELS[colour] * depth) for part in parts if part.size)


def from_samples(
    samples: Samples, colour: int, depth: int, *, interlaced: bool = False, before: bytes = b"", after: bytes = b""
) -> bytes:
    """A whole file; ``before`` and ``after`` are chunks around the pixels."""
    height, width, _ = samples.shape
    pixels = png_chunk(b"IDAT", coded(samples, colour, depth, interlaced))
    return (
        SIGNATURE + ihdr(height, width, colour, depth, interlaced) + before + pixels + after + png_chunk(b"IEND", b"")
    )


def _pack(samples: Samples, depth: int) -> npt.NDArray[np.uint8]:
    """(H, W, C) to rows of bytes."""
    flat = samples.reshape(samples.shape[0], -1)
    if depth == 16:
        return flat.astype(">u2").view(np.uint8).reshape(flat.shape[0], -1)
    bits = np.unpackbits(flat.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :]
    return np.packbits(bits.reshape(flat.shape[0], -1), axis=-1)


def _filter_rows(rows: npt.NDArray[np.uint8], bits_per_pixel: int) -> bytes:
    step = max(1, bits_per_pixel // 8)
    above = np.zeros(rows.shape[1], np.int32)
    out = b""
    for i, row in enumerate(rows.astype(np.int32)):
        left = np.concatenate([np.zeros(step, np.int32), row])[: row.size]
        corner = np.concatenate([np.zeros(step, np.int32), above])[: row.size]
        guess = (0, left, above, (left + above) // 2, _paeth(left, above, corner))[i % 5]
        out += bytes([i % 5]) + ((row - guess) & 255).astype(np.uint8).tobytes()
        above = row
    return out


def _paeth(
    left: npt.NDArray[np.int32], above: npt.NDArray[np.int32], corner: npt.NDArray[np.int32]
) -> npt.NDArray[np.int32]:
    estimate = left + above - corner
    to_left, to_above, to_corner = (abs(estimate - value) for value in (left, above, corner))
    nearer = np.where(to_above <= to_corner, above, corner)
    return np.where((to_left <= to_above) & (to_left <= to_corner), left, nearer)
