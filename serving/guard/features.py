"""What an added perturbation leaves in a picture, as a few numbers: how strong its finest detail is, how it is spread
over values, colours and places, and whether neighbours have it in common.

A perturbation within a bound covers the whole picture, also where nothing is, in all colours alike, with values up to
its bound and none beyond. A photograph's grain is shared by its colours, JPEG's is by blocks of 8 and mostly grey, and
edges of text are strong and few. None of this is a proof, and noise can have all of it: hence the trained head, and its
calibration on noise (``serving.guard.screen``).

NumPy alone; 2 to 3 ms on one core, for a tile of 224 x 224 and for thirteen: of more than ``MAX_PIXELS``, every tile
gives a strip.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

MAX_PIXELS: Final = 224 * 224 * 5 // 4
BLOCK: Final = 8
BIN_ENDS: Final = (0, 1, 2, 4, 6, 7, 8, 10, 12, 16, 24, 40)
"""Ends of the bins of a residual's size, grey levels; the last bin is open."""
QUANTILES: Final = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
LAGS: Final = (
    (0, 1),
    (1, 0),
    (1, 1),
    (0, 2),
    (2, 0),
    (0, 3),
    (3, 0),
    (0, 7),
    (7, 0),
    (0, 8),
    (8, 0),
    (0, 14),
    (14, 0),
)
"""Rows and columns between two pixels that are compared; 7 and 14 are sides of patches, 8 is that of JPEG's blocks."""
CLIP: Final = 24
"""Grey levels above which a step is an edge, and all edges are alike."""
FLOOR: Final = 1e-3

NAMES: Final = (
    *(f"share_to_{end}" for end in BIN_ENDS),
    "share_above",
    "size",
    "peakedness",
    "red_green",
    "green_blue",
    "red_blue",
    *(f"lag_{rows}_{cols}" for rows, cols in LAGS),
    *(f"block_{quantile:g}" for quantile in QUANTILES),
    "block_max",
    "grid_across",
    "grid_down",
    "scale_2",
    "scale_4",
    "scale_8",
    "grey",
    "saturated",
)
"""Of the features, in their order."""


def features(tiles: Pixels, secret: bytes = b"") -> Floats:
    """Shape (len(NAMES),), all finite. ``tiles``: uint8 (S, S, 3) or (T, S, S, 3), S of 32 or more. ``secret``: decides
    which strip is taken of a tile."""
    planes = _planes(tiles if tiles.ndim == 4 else tiles[None], secret)
    inner, medians = planes[..., 1:-1, 1:-1], _medians(planes)
    sizes = np.maximum(inner, medians) - np.minimum(inner, medians)
    found = [
        *_spread(sizes),
        *_shared(inner, medians),
        *_blocks(sizes),
        *_grid(planes[1]),
        *_scales(planes),
        float((inner[1] == 0).mean() + (inner[1] == 255).mean()),
    ]
    return np.array(found, np.float32)


def _planes(tiles: Pixels, secret: bytes) -> Pixels:
    """(3, T, H, S): all rows, or as many of each tile as ``MAX_PIXELS`` allows, where the secret says."""
    num, height, width, _ = tiles.shape
    rows = max(2 * BLOCK, MAX_PIXELS // (num * width) // BLOCK * BLOCK)
    if rows < height:
        starts = [_start(tile, height - rows, secret) for tile in range(num)]
        tiles = np.stack([tiles[tile, start : start + rows] for tile, start in enumerate(starts)])
    return np.ascontiguousarray(np.moveaxis(tiles, 3, 0))


def _start(tile: int, last: int, secret: bytes) -> int:
    """First row of a tile's strip; in the middle where there is no secret."""
    return secret[tile % len(secret)] * last // 255 if secret else last // 2


def _medians(x: Pixels) -> Pixels:
    """Of 3 x 3 pixels, by a network of comparisons: (3, T, H - 2, W - 2)."""
    low, middle, high = _sorted3(x[..., :-2, :], x[..., 1:-1, :], x[..., 2:, :])
    lows = np.maximum(np.maximum(low[..., :-2], low[..., 1:-1]), low[..., 2:])
    highs = np.minimum(np.minimum(high[..., :-2], high[..., 1:-1]), high[..., 2:])
    middles = _middle(middle[..., :-2], middle[..., 1:-1], middle[..., 2:])
    return _middle(lows, middles, highs)


def _sorted3(a: Pixels, b: Pixels, c: Pixels) -> tuple[Pixels, Pixels, Pixels]:
    low, high = np.minimum(a, b), np.maximum(a, b)
    return np.minimum(low, c), np.maximum(low, np.minimum(high, c)), np.maximum(high, c)


def _middle(a: Pixels, b: Pixels, c: Pixels) -> Pixels:
    middle: Pixels = np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))
    return middle


def _spread(sizes: Pixels) -> list[float]:
    """Shares of the residual's sizes (roots, since many are small), their mean, and how few pixels have most of it."""
    counts = np.bincount(sizes.ravel(), minlength=256).astype(np.float64)
    values = np.arange(256.0)
    before = np.concatenate(([0.0], np.cumsum(counts)[list(BIN_ENDS)], [counts.sum()]))
    shares = np.sqrt(np.diff(before) / counts.sum())
    mean, square = counts @ values / counts.sum(), counts @ values**2 / counts.sum()
    return [*shares, _log(mean), _log(mean**2 / max(square, FLOOR))]


def _shared(inner: Pixels, medians: Pixels) -> list[float]:
    """Correlations of the residual between colours, and between neighbours."""
    residual = inner.astype(np.float32) - medians
    np.clip(residual, -CLIP, CLIP, out=residual)  # edges must not drown what is everywhere
    red, green, blue = residual.reshape(3, -1)
    powers = [float(plane @ plane) + FLOOR for plane in (red, green, blue)]
    colours = [
        float(one @ other) / (powers[a] * powers[b]) ** 0.5
        for one, other, a, b in ((red, green, 0, 1), (green, blue, 1, 2), (red, blue, 0, 2))
    ]
    steps = [rows * inner.shape[-1] + cols for rows, cols in LAGS]
    return [*colours, *(float(green[:-step] @ green[step:]) / powers[1] for step in steps)]


def _blocks(sizes: Pixels) -> list[float]:
    """Quantiles of a block's mean size (logs): the least that is anywhere, and what sticks out."""
    small = np.minimum(sizes, 40)
    total = small[0].astype(np.float32) + small[1] + small[2]
    means = np.sort(_block_sums(total).ravel()) / (3 * BLOCK * BLOCK)
    at = [means[int(quantile * (len(means) - 1))] for quantile in QUANTILES]
    return [_log(value, 0.02) for value in (*at, means[-1])]


def _block_sums(values: Floats) -> Floats:
    """(T, H, W) to (T, H / 8, W / 8); what fills no block is left out."""
    num, height, width = values.shape
    rows, cols = height // BLOCK, width // BLOCK
    columns = np.kron(np.eye(cols, dtype=np.float32), np.ones((BLOCK, 1), np.float32))
    across = values[:, : rows * BLOCK, : cols * BLOCK] @ columns
    sums: Floats = across.reshape(num, rows, BLOCK, cols).sum(2)
    return sums


def _grid(green: Pixels) -> list[float]:
    """How much larger steps between pixels are where blocks of JPEG meet, across and down (logs of ratios)."""
    across = _steps(green, 1).sum(axis=(0, 1), dtype=np.uint32)
    down = _steps(green, green.shape[2]).sum(axis=2, dtype=np.uint32).sum(axis=0)
    return [_at_borders(across / green[..., 0].size), _at_borders(down / green[:, 0].size)]


def _at_borders(steps: npt.NDArray[np.float64]) -> float:
    """Of the phase that stands out most: a picture may have been cut."""
    whole = steps[: len(steps) // BLOCK * BLOCK].reshape(-1, BLOCK).mean(0)
    return _log(whole.max(), 0.05) - _log(float(np.median(whole)), 0.05)


def _steps(x: Pixels, by: int) -> Pixels:
    """Sizes of the steps to the right (``by`` 1), or down, of at most ``CLIP`` levels."""
    one, other = (x[..., :-1], x[..., 1:]) if by == 1 else (x[..., :-1, :], x[..., 1:, :])
    steps: Pixels = np.minimum(np.maximum(one, other) - np.minimum(one, other), CLIP)
    return steps


def _scales(planes: Pixels) -> list[float]:
    """Logs of the steps that are left when squares of 2, 4 and 8 pixels are averaged, over those of pixels; and how
    much of the steps is grey."""
    grey = ((planes[0].astype(np.uint16) + planes[1] + planes[2]) // 3).astype(np.uint8)
    first = _mean_step(planes[1])
    found, pixels = [], planes[1]
    for _ in range(3):
        pixels = _halved(pixels)
        found.append(_mean_step(pixels) - first)
    return [*found, _mean_step(grey) - first]


def _halved(x: Pixels) -> Pixels:
    """Means of 2 x 2 pixels, rounded."""
    rows, cols = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    pairs = x[:, 0:rows:2, :cols].astype(np.uint16) + x[:, 1:rows:2, :cols]
    return ((pairs[:, :, 0::2] + pairs[:, :, 1::2] + 2) // 4).astype(np.uint8)


def _mean_step(x: Pixels) -> float:
    """Log of the mean step to the right."""
    return _log(float(_steps(x, 1).mean(dtype=np.float32)), 0.05)


def _log(value: float, floor: float = FLOOR) -> float:
    return float(np.log(max(float(value), floor)))
