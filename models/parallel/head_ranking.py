"""AdaSpa ranks the heads of a layer among each other; under Ulysses they are on several ranks.

Legend: B batch, N heads of the layer, P ranks.
"""

from __future__ import annotations

from torch import Tensor

from models.methods.attention.adaspa import AdaSpaAttention
from models.methods.attention.adaspa_config import AdaSpaConfig
from models.methods.attention.adaspa_search import adapt_heads
from models.parallel.collectives import all_gather
from models.parallel.groups import Group


class AdaSpaOnRank:
    """``attention`` on this rank's heads, as sparse as they would be on one rank.

    In the steps that search, the ranks exchange a number per row and head of each layer.
    """

    def __init__(self, attention: AdaSpaAttention, group: Group) -> None:
        self._attention = attention
        self._group = group

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, layer: int) -> Tensor:
        """(B, L, N/P, D) each -> (B, L, N/P, D)."""
        return self._attention.attend(q, k, v, layer=layer, adapt=self._adapt)

    def _adapt(self, recalls: Tensor, config: AdaSpaConfig) -> Tensor:
        """(B, N/P) -> (B, N/P)."""
        num_heads, group = recalls.shape[1], self._group
        everyone = all_gather(recalls.T, [num_heads] * group.size, group).T
        return adapt_heads(everyone, config)[:, group.rank * num_heads :][:, :num_heads]
