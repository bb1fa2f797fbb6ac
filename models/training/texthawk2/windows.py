"""In training only: each token of the connector names the characters that it covers, and says where it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.families.texthawk2.config import TextHawk2Config


class WindowHead(nn.Module):
    """Linear from one token to the classes of its patches' places, ``per_patch`` side by side in each patch.

    A token is ``merge_width`` neighbouring queries, each of 2x2 patches: 2 rows and 2 * merge_width columns.
    """

    def __init__(self, config: TextHawk2Config, num_classes: int, per_patch: int = 1) -> None:
        super().__init__()
        self.side = config.patches_side
        self.columns = 2 * config.merge_width * per_patch
        self.places = 2 * self.columns
        self.per_patch = per_patch
        self.num_classes = num_classes
        self.fc = nn.Linear(config.text_config.hidden_size, self.places * num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (N, width) to logits (N, places of a window, classes)."""
        normed = nn.functional.layer_norm(tokens, tokens.shape[-1:])
        logits: Tensor = self.fc(normed)
        return logits.view(len(tokens), self.places, self.num_classes)

    def arrange(self, labels: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
        """Labels of tiles (T, side * side * per_patch), row by row, to those of all pictures' tokens in the connector's
        order, (N, places of a window)."""
        counts = [rows * columns + (rows * columns > 1) for rows, columns in grids]
        maps = torch.split(labels.view(len(labels), self.side, -1), counts)
        pictures = zip(maps, grids, strict=True)
        return torch.cat([part for tiles, grid in pictures for part in self._of_picture(tiles, grid)])

    def _of_picture(self, tiles: Tensor, grid: tuple[int, int]) -> list[Tensor]:
        """The thumbnail's, if there is one, then those of all other tiles as one page."""
        rows, columns = grid
        page = tiles[-rows * columns :].view(rows, columns, self.side, -1).transpose(1, 2).reshape(rows * self.side, -1)
        return [self._windows(one) for one in (*tiles[: -rows * columns], page)]

    def _windows(self, page: Tensor) -> Tensor:
        """Labels (height, width) to windows, row by row, each row by row."""
        return page.reshape(len(page) // 2, 2, -1, self.columns).transpose(1, 2).reshape(-1, self.places)


class PlaceHead(nn.Module):
    """Linear from one token to the middle of its window, as shares of the picture's width and height.

    Characters can be named without knowing where they are. Left to that, the connector drops the positional embeddings
    on the way to its tokens (a linear probe found 5% of the rows' spread), and then no answer can have a box.
    """

    def __init__(self, config: TextHawk2Config) -> None:
        super().__init__()
        self.rows = config.queries_side
        self.columns = config.queries_side // config.merge_width
        self.fc = nn.Linear(config.text_config.hidden_size, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (N, width) to (N, 2)."""
        places: Tensor = self.fc(nn.functional.layer_norm(tokens, tokens.shape[-1:]))
        return places

    def expected(self, grids: Sequence[tuple[int, int]]) -> Tensor:
        """Places (N, 2) of the tokens of pictures with these grids, in the connector's order."""
        return torch.cat([self._of_picture(grid) for grid in grids])

    def _of_picture(self, grid: tuple[int, int]) -> Tensor:
        """The thumbnail's, if there is one, then row by row those of all tiles together."""
        rows, columns = grid
        page = _middles(rows * self.rows, columns * self.columns)
        return page if rows * columns == 1 else torch.cat([_middles(self.rows, self.columns), page])


def _middles(rows: int, columns: int) -> Tensor:
    """Middles (rows * columns, 2) of equal cells, row by row: x, y."""
    y, x = ((torch.arange(count) + 0.5) / count for count in (rows, columns))
    return torch.stack([x.expand(rows, columns), y[:, None].expand(rows, columns)], -1).flatten(0, 1)
