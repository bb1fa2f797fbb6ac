"""DiT-MoE on several ranks: each runs its share of the rows, and its share of the experts for the rows of all."""

from __future__ import annotations

import torch
from torch import Tensor

from models.families.dit_moe.network import DitMoe, Gated
from models.methods.experts.parallel import ExpertRanks
from models.parallel.rows import all_shares, share_of


class SpreadDitMoe:
    """``network``, called alike on every rank with all rows, and giving all. Its experts are replaced by ``ranks``'."""

    def __init__(self, network: DitMoe, ranks: ExpertRanks) -> None:
        for block, experts in zip(network.blocks, ranks.layers, strict=True):
            block.moe.experts = experts
        self.config = network.config
        self._network = network
        self._group = ranks.group

    def __call__(
        self,
        latents: Tensor,
        times: Tensor,
        classes: Tensor,
        top_k: int | None = None,
        gated: list[Gated] | None = None,
    ) -> Tensor:
        """As the network; ``gated`` without logits, which stay where they were made."""
        own: list[Gated] = []
        shares = [share_of(one, self._group) for one in (latents, times, classes)]
        output = self._network(*shares, top_k, own)
        if gated is not None:
            gated += self._of_all([one.ids for one in own], len(latents))
        return all_shares(output, len(latents), self._group)

    def _of_all(self, ids: list[Tensor], num_rows: int) -> list[Gated]:
        """Of each layer (T, K) for the rows of this rank, of all ranks: in one exchange, and in few bytes."""
        kind = torch.uint8 if self.config.num_experts <= 256 else torch.int16
        own = torch.stack(ids, dim=1).to(kind)  # (T, L, K)
        rows = own.view(-1, self.config.num_tokens, *own.shape[1:])
        all_ids = all_shares(rows, num_rows, self._group).flatten(0, 1).to(torch.int64)
        return [Gated(logits=all_ids.new_empty(0), ids=layer) for layer in all_ids.unbind(1)]
