"""Copies of a picture that show the same and keep little of a perturbation.

``squeezed`` is always the same, so that distances to it can be compared with benign ones (W. Xu et al., 1704.01155).
``purified`` is drawn anew each time, from a secret that nobody has before it is used: an attacker can prepare for the
distribution (expectation over transformations), never for the draw.

Pixels are the engine's own tiles, long decoded: nothing that a client wrote is parsed here.
"""

from __future__ import annotations

import io
import random
import secrets
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

from serving.delivery.stream.wire import EngineImage

_Page = npt.NDArray[np.uint8]
_RESAMPLING = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
_SCALES = (0.6, 0.95)
_QUALITIES = (50, 90)
_SQUEEZED_SCALE = 0.75
_SQUEEZED_STEP = 16
"""Grey levels between two that are left: 4 bits a channel."""


def purified(image: EngineImage, draw: random.Random | None = None) -> EngineImage:
    """Resized and back, each side by a factor of its own, then through JPEG. ``draw``: for tests; otherwise from
    ``secrets``. Its key is new, so that no cache takes it for the original."""
    draw = secrets.SystemRandom() if draw is None else draw
    return _changed(image, lambda page: _through_jpeg(_resized(page, draw), draw.randint(*_QUALITIES)))


def squeezed(image: EngineImage) -> EngineImage:
    """Resized to three quarters and back, 4 bits a channel."""
    return _changed(image, _coarse)


def _changed(image: EngineImage, change: Callable[[_Page], _Page]) -> EngineImage:
    """The page of all tiles as one picture, and the thumbnail as another."""
    rows, columns = image.grid
    tiles = image.tiles
    side = tiles.shape[1]
    num_thumbnails = len(tiles) - rows * columns
    grid = tiles[num_thumbnails:].reshape(rows, columns, side, side, 3)
    page = change(np.ascontiguousarray(grid.swapaxes(1, 2)).reshape(rows * side, columns * side, 3))
    cut = page.reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
    thumbnails = [change(tile)[None] for tile in tiles[:num_thumbnails]]
    return EngineImage(secrets.token_hex(16), np.concatenate([*thumbnails, cut]), image.grid)


def _resized(page: _Page, draw: random.Random) -> _Page:
    height, width = page.shape[:2]
    small = (max(1, round(width * draw.uniform(*_SCALES))), max(1, round(height * draw.uniform(*_SCALES))))
    down, up = draw.choice(_RESAMPLING), draw.choice(_RESAMPLING)
    return np.asarray(Image.fromarray(page).resize(small, down).resize((width, height), up))


def _through_jpeg(page: _Page, quality: int) -> _Page:
    file = io.BytesIO()
    Image.fromarray(page).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file, formats=("JPEG",)).convert("RGB"))


def _coarse(page: _Page) -> _Page:
    height, width = page.shape[:2]
    small = (max(1, round(width * _SQUEEZED_SCALE)), max(1, round(height * _SQUEEZED_SCALE)))
    smooth = Image.fromarray(page).resize(small, Image.Resampling.BILINEAR)
    smooth = smooth.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(smooth) // _SQUEEZED_STEP * _SQUEEZED_STEP + np.uint8(_SQUEEZED_STEP // 2)
