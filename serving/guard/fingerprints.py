"""Keyed fingerprints of pictures: what two that look alike share, and nobody without the secret can tell.

A *word* is the grey means of 2 x 4 neighbouring cells of 8 x 8 pixels, less their own mean, in steps of 12 to 20
levels. Of all words of a picture that are not flat, each of 32 keyed hashes keeps the smallest: a min-hash by one
permutation, so that the share of equal slots estimates how many of both pictures' words are common. In the manner of
Blacklight (USENIX Security 2022), which hashes windows of raw pixels: means leave most words as they are under a
perturbation of a few grey levels, noise or JPEG, and what is flat anyway does not count.

What it does not see: a picture that is moved by a pixel is another one (by eight it is not). Pictures of nothing but
fine noise are all alike.

The step and the hashes depend on a secret: who could compute a fingerprint could look for changes that move it most.
"""

from __future__ import annotations

import hmac
from typing import Final

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

NUM_SLOTS: Final = 32
FINGERPRINT_BYTES: Final = 2 * NUM_SLOTS
NEAR_AT: Final = 0.45
"""Share of common words from which two pictures count as one, slightly changed. Of different pictures of one kind it
was 0.2 at most, of a picture and itself with uniform noise of 8 grey levels 0.5 at least, after JPEG of quality 90
mostly 0.6 to 0.8 (``tests/unit/serving/guard/test_fingerprints.py`` repeats it in small)."""
_CELL: Final = 8
_ROWS, _COLS = 2, 4
_EMPTY: Final = 0xFFFF
"""Of a slot that no word fell into."""


class Fingerprints:
    """Makes fingerprints under a deployment's secret. Stateless; safe to share between threads."""

    def __init__(self, secret: bytes) -> None:
        stream = b"".join(hmac.digest(secret, b"vireo fingerprint %d" % i, "sha512") for i in range(2))
        self._weights = np.frombuffer(stream[:64], np.uint64) | np.uint64(1)
        self._added, self._multiplier = np.frombuffer(stream[64:80], np.uint64) | np.uint64(1)
        self._step = np.float32(12.0 + 8.0 * stream[80] / 255)

    def of(self, pixels: Pixels) -> bytes:
        """64 bytes. ``pixels``: uint8 (S, S, 3), or tiles (T, S, S, 3); S of 32 or more."""
        values = self._hashes(self._means(pixels if pixels.ndim == 4 else pixels[None]))
        slots = np.full(NUM_SLOTS, _EMPTY, np.uint16)
        where = (values >> np.uint64(59)).astype(np.intp)  # 5 bits
        ranks = ((values >> np.uint64(43)) & np.uint64(0xFFFF)).astype(np.uint16)
        np.minimum.at(slots, where, np.minimum(ranks, _EMPTY - 1).astype(np.uint16))
        return slots.astype("<u2").tobytes()

    def _means(self, tiles: Pixels) -> npt.NDArray[np.float32]:
        """Grey means (T, rows, cols); what does not fill a cell at the right and below is left out."""
        num, height, width, _ = tiles.shape
        rows, cols = height // _CELL, width // _CELL
        cut = tiles[:, : rows * _CELL, : cols * _CELL].reshape(num, rows, _CELL, cols, _CELL * 3)
        sums = cut.sum(axis=2, dtype=np.uint16).sum(axis=3, dtype=np.uint16)
        means: npt.NDArray[np.float32] = sums.astype(np.float32) / np.float32(3 * _CELL * _CELL)
        return means

    def _hashes(self, means: npt.NDArray[np.float32]) -> npt.NDArray[np.uint64]:
        """One 64-bit hash a word that is not flat: multiply-add by odd keys, then mixed."""
        rows, cols = means.shape[1] - _ROWS + 1, means.shape[2] - _COLS + 1
        places = [divmod(place, _COLS) for place in range(_ROWS * _COLS)]
        words = [means[:, row : row + rows, col : col + cols] for row, col in places]
        centre = sum(words[1:], words[0]) / np.float32(len(words))
        total = np.full(centre.shape, self._added, np.uint64)
        is_flat = np.ones(centre.shape, bool)
        for word, weight in zip(words, self._weights, strict=True):
            levels = np.rint((word - centre) / self._step).astype(np.int64)
            is_flat &= levels == 0
            total += weight * levels.view(np.uint64)
        values: npt.NDArray[np.uint64] = total[~is_flat]
        values ^= values >> np.uint64(31)
        values *= self._multiplier
        values ^= values >> np.uint64(29)
        values *= self._multiplier
        return values


def similarities(one: bytes, others: bytes) -> npt.NDArray[np.float64]:
    """What share of its words each of the others has in common with the first, estimated: 0 to 1, shape (N,).

    ``others``: N fingerprints on end. Raises: ValueError: they are no fingerprints.
    """
    if len(one) != FINGERPRINT_BYTES or len(others) % FINGERPRINT_BYTES:
        raise ValueError(f"fingerprints have {FINGERPRINT_BYTES} bytes each; got {len(one)} and {len(others)}")
    left = np.frombuffer(one, "<u2")
    right = np.frombuffer(others, "<u2").reshape(-1, NUM_SLOTS)
    is_used = (left != _EMPTY) | (right != _EMPTY)
    shared: npt.NDArray[np.float64] = ((left == right) & is_used).sum(1) / np.maximum(1, is_used.sum(1))
    return shared
