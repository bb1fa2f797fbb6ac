"""Connector: from the vision tower's features to the language model's embeddings, 16 tokens a tile."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.families.texthawk2.config import TextHawk2Config
from models.families.texthawk2.position import ScalablePositionEmbedding
from models.families.texthawk2.proposal import QueryProposalNetwork
from models.families.texthawk2.rearrange import rearrange
from models.families.texthawk2.resampler import Resampler

Grid = tuple[int, int]
"""(rows, columns) of tiles, without the thumbnail."""


class Connector(nn.Module):
    """Propose, resample, rearrange, project (TextHawk2, arXiv 2410.05261, section 3.2)."""

    def __init__(self, config: TextHawk2Config) -> None:
        super().__init__()
        vision_width, width = int(config.vision_config.hidden_size), config.resampler_hidden_size
        self.patches_side, self.queries_side = config.patches_side, config.queries_side
        self.merge_width = config.merge_width
        self.query_proposal = QueryProposalNetwork(vision_width, width)
        self.query_position = ScalablePositionEmbedding(width, config.resampler_num_heads)
        self.key_position = ScalablePositionEmbedding(vision_width, config.resampler_num_heads)
        self.resampler = Resampler(
            width,
            vision_width,
            config.resampler_num_heads,
            config.resampler_intermediate_size,
            config.resampler_routing,
        )
        self.out_proj = nn.Linear(config.merge_width * width, int(config.text_config.hidden_size))

    def forward(self, levels: Sequence[Tensor], grids: Sequence[Grid]) -> list[Tensor]:
        """``levels``: features of each level, each (T, patches, vision width), tiles of all images one after another.

        Returns one (16 * tiles, language width) tensor per image.
        """
        counts = [rows * columns + (rows * columns > 1) for rows, columns in grids]
        queries = self.query_proposal(levels[-1], self.patches_side)
        queries = queries + self._positions(self.query_position, grids, self.queries_side)
        keys = self._positions(self.key_position, grids, self.patches_side)
        resampled = self.resampler(queries, levels, keys)
        pages = [
            rearrange(tiles, rows, columns, self.queries_side, self.merge_width)
            for tiles, (rows, columns) in zip(resampled.split(counts), grids, strict=True)
        ]
        embedded = self.out_proj(torch.cat(pages))
        return list(embedded.split([len(page) for page in pages]))

    def _positions(self, embedding: ScalablePositionEmbedding, grids: Sequence[Grid], side: int) -> Tensor:
        """Positions of every tile in its image, (T, side * side, width). A page of few shapes computes each once."""
        of_grid = {grid: _tile_positions(embedding, grid, side) for grid in dict.fromkeys(grids)}
        return torch.cat([of_grid[grid] for grid in grids])


def _tile_positions(embedding: ScalablePositionEmbedding, grid: Grid, side: int) -> Tensor:
    rows, columns = grid
    whole: Tensor = embedding(rows * side, columns * side)
    tiles = whole.view(rows, side, columns, side, -1).transpose(1, 2).reshape(rows * columns, side * side, -1)
    if rows * columns == 1:
        return tiles
    thumbnail = embedding(side, side).view(1, side * side, -1)
    return torch.cat([thumbnail, tiles])
