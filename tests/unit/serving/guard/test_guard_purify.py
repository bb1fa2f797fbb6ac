"""Copies that show the same: close to the original, different from it, and from one draw to the next."""

from __future__ import annotations

import random

import numpy as np
import pytest

from serving.delivery.stream.wire import EngineImage
from serving.guard.purify import purified, squeezed


def picture(rows: int, columns: int, noise: int = 0, side: int = 32) -> EngineImage:
    """A slope over the whole page, cut into tiles, with a thumbnail if there are several."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[0 : rows * side, 0 : columns * side]
    page = np.stack([x * 200 / (columns * side), y * 200 / (rows * side), (x + y) % 64], axis=-1) + 20
    page = (page + noise * rng.choice((-1, 1), page.shape)).clip(0, 255).astype(np.uint8)
    tiles = page.reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
    if len(tiles) > 1:
        tiles = np.concatenate([np.ascontiguousarray(page[::rows, ::columns])[None], tiles])
    return EngineImage("5a", tiles, (rows, columns))


def page_of(image: EngineImage) -> np.ndarray:
    rows, columns = image.grid
    side = image.tiles.shape[1]
    grid = image.tiles[len(image.tiles) - rows * columns :].reshape(rows, columns, side, side, 3)
    return np.concatenate([np.concatenate(list(row), axis=1) for row in grid], axis=0).astype(float)


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (3, 1)])
def test_copies_have_the_shape_of_the_original_and_show_the_same(grid: tuple[int, int]) -> None:
    image = picture(*grid)
    for copy in (purified(image), squeezed(image)):
        assert copy.tiles.shape == image.tiles.shape
        assert copy.tiles.dtype == np.uint8
        assert copy.grid == image.grid
        assert copy.key != image.key
        difference = np.abs(page_of(copy)[..., :2] - page_of(image)[..., :2])
        assert 0.0 < difference.mean() < 8.0, "the slopes, which tiles in the wrong places would break"
        assert np.abs(copy.tiles[0][..., :2].astype(float) - image.tiles[0][..., :2]).mean() < 8.0


def test_fine_noise_does_not_survive() -> None:
    """8 grey levels up or down, pixel by pixel: what an attacker is allowed."""
    clean, noisy = picture(2, 2), picture(2, 2, noise=8)
    before = np.abs(page_of(noisy) - page_of(clean)).mean()
    for seed in range(5):
        draw = [random.Random(seed), random.Random(seed)]
        after = np.abs(page_of(purified(noisy, draw[0])) - page_of(purified(clean, draw[1]))).mean()
        assert after < 0.6 * before


def test_every_copy_is_drawn_anew_and_a_squeezed_one_is_always_the_same() -> None:
    image = picture(2, 2)
    one, other = purified(image), purified(image)
    assert one.key != other.key
    assert not np.array_equal(one.tiles, other.tiles)
    again = [purified(image, random.Random(3)).tiles for _ in range(2)]
    assert np.array_equal(*again)
    assert np.array_equal(squeezed(image).tiles, squeezed(image).tiles)
    assert len(np.unique(squeezed(image).tiles)) <= 16


def test_original_is_left_as_it_was() -> None:
    image = picture(2, 2)
    image.tiles.flags.writeable = False  # as shared memory may be
    before = image.tiles.copy()
    purified(image)
    squeezed(image)
    assert np.array_equal(image.tiles, before)
