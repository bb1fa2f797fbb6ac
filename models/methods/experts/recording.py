"""How many tokens of each row went to which expert.

Legend: R rows, L layers, E experts, T tokens of all rows, k experts a token.
"""

from __future__ import annotations

import torch
from torch import Tensor


class LoadRecorder:
    """Routing of one forward pass. A layer hands over the ids that it routes by, which costs nothing; they are counted
    once, at the end."""

    def __init__(self, num_experts: int) -> None:
        self.num_experts = num_experts
        self._ids: list[Tensor] = []

    def record(self, ids: Tensor) -> None:
        """Take the next layer's ids (T, k), rows one after another with equally many tokens each."""
        self._ids.append(ids.detach())

    def counts(self, num_rows: int) -> Tensor:
        """int64 (R, L, E), on the CPU. Raises: ValueError: no layer, or tokens that do not divide into so many rows."""
        if not self._ids:
            raise ValueError("no layer has recorded its routing")
        if len(self._ids[0]) % num_rows:
            raise ValueError(f"{len(self._ids[0])} tokens are not those of {num_rows} rows")
        ids = torch.stack(self._ids, dim=1).view(num_rows, -1, len(self._ids), self._ids[0].shape[-1])
        num_layers = len(self._ids)
        cells = torch.arange(num_rows * num_layers, device=ids.device).view(num_rows, 1, num_layers, 1)
        counts = torch.bincount(
            (ids + cells * self.num_experts).flatten(), minlength=num_rows * num_layers * self.num_experts
        )
        return counts.view(num_rows, num_layers, self.num_experts).cpu()
