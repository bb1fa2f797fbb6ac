"""Attention under tile masks, as dense calls: no mask is ever applied, so it runs at the speed of dense attention.

A reference frame sees all tokens: one call for all of them. Any other frame sees itself and the references: their keys
are put side by side, which costs 1/S of the work for S tokens per frame. Exact for any grid, also where no tile of a
kernel divides a frame. Text that attends together with the frames stands at the end; it sees, and is seen by, all.

Legend: B batch, L tokens (= F * S, frame-major, and T of text), N heads, D head dim, F frames, S tokens per frame, k
references.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.methods.attention.dense import DENSE
from models.methods.attention.tile_mask import TileMask

_GATHERED_BYTES = 16 << 20  # of keys put side by side in one call


@dataclass(frozen=True, kw_only=True)
class TilePlan:
    """A mask made ready for a device: frame numbers of the references, those of the others."""

    references: Tensor
    others: Tensor
    is_dense: bool


class TilePlans:
    """Plans by (grid, mask, device), ``capacity`` of them, the least recently used dropped. Requests may share one."""

    def __init__(self, capacity: int = 64) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}; need at least 1")
        self._capacity = capacity
        self._plans: OrderedDict[tuple[tuple[int, int, int], TileMask, torch.device], TilePlan] = OrderedDict()

    def __len__(self) -> int:
        return len(self._plans)

    def get(self, grid: tuple[int, int, int], mask: TileMask, device: torch.device) -> TilePlan:
        """Made on the first call."""
        key = (grid, mask, device)
        plan = self._plans.get(key) or self._make(mask, device)
        self._plans[key] = plan
        self._plans.move_to_end(key)
        while len(self._plans) > self._capacity:
            self._plans.popitem(last=False)
        return plan

    @staticmethod
    def _make(mask: TileMask, device: torch.device) -> TilePlan:
        references = mask.reference_frames()
        others = [frame for frame in range(mask.num_frames) if frame not in references]
        return TilePlan(
            references=torch.tensor(references, dtype=torch.long, device=device),
            others=torch.tensor(others, dtype=torch.long, device=device),
            is_dense=mask.sparsity == 0,
        )


class TileAttention:
    """One mask for each layer, None = dense; ``grid`` is (t, h, w) of patches, behind which ``num_text_tokens`` stand.

    Masks depend on positions alone: all heads, rows and requests of a batch share them.

    Raises: ValueError: a mask for another number of frames than the grid has.
    """

    def __init__(
        self,
        masks: Sequence[TileMask | None],
        grid: tuple[int, int, int],
        *,
        num_text_tokens: int = 0,
        plans: TilePlans | None = None,
    ) -> None:
        wrong = [mask.name for mask in masks if mask is not None and mask.num_frames != grid[0]]
        if wrong:
            raise ValueError(f"tile mask {wrong[0]} does not fit {grid[0]} latent frames; its numbers must add to that")
        self.masks = tuple(masks)
        self.grid = grid
        self.num_text_tokens = num_text_tokens
        self._plans = plans or TilePlans()

    @property
    def tokens_per_frame(self) -> int:
        """S."""
        return self.grid[1] * self.grid[2]

    @property
    def frame_masks(self) -> list[Tensor | None]:
        """Bool (F, F) for each layer, None = dense."""
        return [None if mask is None else mask.frame_mask() for mask in self.masks]

    @property
    def achieved_sparsity(self) -> float:
        """Mean over the layers."""
        return sum(0.0 if mask is None else mask.sparsity for mask in self.masks) / max(1, len(self.masks))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, layer: int) -> Tensor:
        """See ``SelfAttention``.

        Raises: ValueError: other tokens than the grid has, or a layer without an entry.
        """
        num_tokens = self.grid[0] * self.tokens_per_frame + self.num_text_tokens
        if q.shape[1] != num_tokens or k.shape[1] != num_tokens:
            raise ValueError(f"{q.shape[1]} queries and {k.shape[1]} keys; grid {self.grid} has {num_tokens} tokens")
        if layer >= len(self.masks):
            raise ValueError(f"layer {layer} has no tile mask; {len(self.masks)} were given, one per layer")
        mask = self.masks[layer]
        if mask is None:
            return DENSE(q, k, v, layer=layer)
        plan = self._plans.get(self.grid, mask, q.device)
        return tile_attention(q, k, v, plan, mask.num_frames, self.num_text_tokens)


def tile_attention(
    q: Tensor, k: Tensor, v: Tensor, plan: TilePlan, num_frames: int, num_text_tokens: int = 0
) -> Tensor:
    """(B, L, N, D) each -> (B, L, N, D)."""
    if plan.is_dense:
        return DENSE(q, k, v)
    end = q.shape[1] - num_text_tokens
    queries, *others = (torch.unflatten(x[:, :end], 1, (num_frames, -1)) for x in (q, k, v))  # (B, F, S, N, D)
    out = torch.empty_like(q)
    frames = torch.unflatten(out[:, :end], 1, (num_frames, -1))  # a view
    if len(plan.references):
        seen_by_all = queries[:, plan.references]
        frames[:, plan.references] = DENSE(seen_by_all.flatten(1, 2), k, v).view_as(seen_by_all)
    if num_text_tokens:
        out[:, end:] = DENSE(q[:, end:], k, v)
    keys, values = (  # (B, 1, k * S + T, N, D)
        torch.cat((x[:, plan.references].flatten(1, 2), text[:, end:]), dim=1).unsqueeze(1)
        for x, text in zip(others, (k, v), strict=True)
    )
    for some in torch.split(plan.others, _frames_per_call(k, num_frames, len(plan.references))):
        frames[:, some] = _others(queries[:, some], others, (keys, values), some)
    return out


def _others(queries: Tensor, own: Sequence[Tensor], more: Sequence[Tensor], some: Tensor) -> Tensor:
    """Frames ``some`` over themselves, the references and the text: (B, f, S, N, D)."""
    keys, values = (
        torch.cat((y.expand(-1, len(some), -1, -1, -1), x[:, some]), dim=2) for x, y in zip(own, more, strict=True)
    )  # (B, f, (k + 1) * S + T, N, D)
    return DENSE(*(x.flatten(0, 1) for x in (queries, keys, values))).view_as(queries)


def _frames_per_call(k: Tensor, num_frames: int, references: int) -> int:
    bytes_per_frame = k.numel() * k.element_size() // num_frames * (references + 1)
    return max(1, _GATHERED_BYTES // max(1, bytes_per_frame))
