"""Tile masks round a ring: of each passing block, only the keys of frames that a query's frame may see.

Legend: B batch, l tokens of this rank, N heads, D head dim, F frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from models.methods.attention.partial import Merge, attention_with_lse


class TileBlocks:
    """Per layer a bool mask of frames (F, F), True = attend, or None for dense; ``tokens_per_frame`` in order of frame.

    The ring is as slow as its slowest rank: ranks that hold reference frames, whose queries see everything, do more.
    """

    def __init__(self, frame_masks: Sequence[Tensor | None], tokens_per_frame: int) -> None:
        self._masks = [None if mask is None else mask.cpu() for mask in frame_masks]
        self._tokens_per_frame = tokens_per_frame

    def add(self, merge: Merge, q: Tensor, k: Tensor, v: Tensor, queries: slice, keys: slice, layer: int) -> None:
        """One dense call for each set of query frames that sees the same frames."""
        mask = self._masks[layer]
        if mask is None:
            merge.add(*attention_with_lse(q, k, v))
            return
        for rows, columns in self._calls(mask, queries, keys):
            rows, columns = rows.to(q.device), columns.to(q.device)
            merge.add(*attention_with_lse(q[:, rows], k[:, columns], v[:, columns]), rows)

    def _calls(self, mask: Tensor, queries: slice, keys: slice) -> Iterator[tuple[Tensor, Tensor]]:
        """Row and column numbers within the two runs."""
        query_frames, key_frames = self._frames(queries), self._frames(keys)
        present = torch.arange(int(query_frames[0]), int(query_frames[-1]) + 1)
        for frames_seen in _distinct(mask[present]):
            alike = (mask == frames_seen).all(dim=1)
            rows = alike[query_frames].nonzero().flatten()
            columns = frames_seen[key_frames].nonzero().flatten()
            if len(columns):
                yield rows, columns

    def _frames(self, run: slice) -> Tensor:
        return torch.arange(run.start, run.stop) // self._tokens_per_frame


def _distinct(rows: Tensor) -> list[Tensor]:
    return [rows[number] for number in {tuple(row): number for number, row in enumerate(rows.tolist())}.values()]
