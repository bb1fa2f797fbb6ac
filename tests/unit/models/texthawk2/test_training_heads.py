"""Heads of the training: what they expect of each token, in the connector's own order."""

from __future__ import annotations

import pytest
import torch

from models.families.texthawk2.rearrange import rearrange
from models.training.texthawk2.nano import nano_config
from models.training.texthawk2.windows import PlaceHead, WindowHead

CONFIG = nano_config(100, 1, 2, 3, 4, 5, 6)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 3), (2, 2)])
def test_places_are_in_the_order_of_the_connectors_tokens(rows: int, columns: int) -> None:
    """Rearrange queries that are nothing but their own places."""
    side, width = CONFIG.queries_side, CONFIG.merge_width
    y, x = torch.meshgrid(
        (torch.arange(rows * side) + 0.5) / (rows * side),
        (torch.arange(columns * side) + 0.5) / (columns * side),
        indexing="ij",
    )
    page = torch.stack([x, y], -1)
    tiles = page.view(rows, side, columns, side, 2).transpose(1, 2).reshape(rows * columns, side * side, 2)
    if rows * columns > 1:
        ends = (torch.arange(side) + 0.5) / side
        thumbnail = torch.stack([ends.expand(side, side), ends[:, None].expand(side, side)], -1)
        tiles = torch.cat([thumbnail.reshape(1, side * side, 2), tiles])
    tokens = rearrange(tiles, rows, columns, side, width).view(-1, width, 2).mean(1)
    assert torch.allclose(PlaceHead(CONFIG).expected([(rows, columns)]), tokens, atol=1e-6)


def test_windows_hold_the_patches_that_a_token_is_made_of() -> None:
    side = CONFIG.patches_side
    labels = torch.arange(side * side)[None]
    windows = WindowHead(CONFIG, 5).arrange(labels, [(1, 1)])
    assert windows.shape == (CONFIG.tokens_per_tile, 16)
    assert windows[1].tolist() == [8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31]
    assert sorted(windows.flatten().tolist()) == list(range(side * side))


def test_windows_hold_every_place_across_a_patch() -> None:
    side = CONFIG.patches_side
    labels = torch.arange(side * side * 3)[None]
    windows = WindowHead(CONFIG, 5, per_patch=3).arrange(labels, [(1, 1)])
    assert windows.shape == (CONFIG.tokens_per_tile, 48)
    assert windows[0].tolist() == [*range(24), *range(48, 72)]
    assert windows[1, :3].tolist() == [24, 25, 26]
    assert sorted(windows.flatten().tolist()) == list(range(side * side * 3))


@pytest.mark.parametrize("grids", [[(1, 1), (2, 3)], [(3, 1), (1, 2), (1, 1)]])
def test_windows_of_pages_are_in_the_order_of_the_connectors_tokens(grids: list[tuple[int, int]]) -> None:
    """Rearrange queries that are nothing but the number of their upper left patch."""
    side, patches = CONFIG.queries_side, CONFIG.patches_side
    counts = [rows * columns + (rows * columns > 1) for rows, columns in grids]
    labels = torch.arange(sum(counts) * patches * patches).view(sum(counts), -1)
    queries = labels.view(-1, side, 2, side, 2)[:, :, 0, :, 0].reshape(sum(counts), side * side, 1)
    tokens = torch.cat(
        [
            rearrange(tiles, rows, columns, side, CONFIG.merge_width)
            for tiles, (rows, columns) in zip(queries.split(counts), grids, strict=True)
        ]
    )
    windows = WindowHead(CONFIG, 5).arrange(labels, grids)
    assert windows[:, : 2 * CONFIG.merge_width : 2].tolist() == tokens.tolist()
