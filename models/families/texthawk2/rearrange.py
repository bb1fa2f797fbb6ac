"""Rearrangement: the queries of all tiles, read like a page, four neighbours to a token."""

from __future__ import annotations

import torch
from torch import Tensor


def rearrange(queries: Tensor, rows: int, columns: int, side: int, merge_width: int) -> Tensor:
    """Order the queries of one image row by row across its tiles and join ``merge_width`` neighbours.

    ``queries``: (T, side * side, d), tiles row by row, after the thumbnail if there are several. Returns
    (T * side * side / merge_width, merge_width * d): the thumbnail's tokens, then those of the page, on which a row of
    queries runs through all the tiles of a tile row (TextHawk2, arXiv 2410.05261, section 3.2).
    """
    has_thumbnail = rows * columns > 1
    if queries.shape[0] != rows * columns + has_thumbnail:
        raise ValueError(f"{queries.shape[0]} tiles do not make a grid of {rows}x{columns}")
    width = queries.shape[-1]
    page = queries[1:] if has_thumbnail else queries
    page = page.view(rows, columns, side, side, width).permute(0, 2, 1, 3, 4).reshape(-1, merge_width * width)
    if not has_thumbnail:
        return page
    return torch.cat([queries[0].reshape(-1, merge_width * width), page])
