"""Query proposal network: the resampler's queries come from the image itself."""

from __future__ import annotations

from torch import Tensor, nn


class QueryProposalNetwork(nn.Module):
    """MLP (GELU, four times as wide), 2x2 max pool, linear (TextHawk, arXiv 2404.09204, section 3.3).

    A tile of 16x16 patches becomes 8x8 queries.
    """

    def __init__(self, vision_width: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision_width, 4 * vision_width)
        self.fc2 = nn.Linear(4 * vision_width, vision_width)
        self.out_proj = nn.Linear(vision_width, width)

    def forward(self, features: Tensor, side: int) -> Tensor:
        """``features`` (T, side * side, vision width) to queries (T, side * side / 4, width), both row by row."""
        hidden = self.fc2(nn.functional.gelu(self.fc1(features)))
        tiles, _, width = hidden.shape
        # Windows are taken apart by views: max over two axes needs no transposed copy, as a pooling layer would.
        pooled = hidden.view(tiles, side // 2, 2, side // 2, 2, width).amax(dim=(2, 4))
        queries: Tensor = self.out_proj(pooled.flatten(1, 2))
        return queries
