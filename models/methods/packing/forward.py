"""One step of a video transformer for clips of several lengths and sizes together.

Legend: n rows of a call, l tokens of each, L tokens of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from models.methods.attention.base import SelfAttention
from models.methods.packing.attention import PackedAttention
from models.methods.packing.layout import Layout, Packed
from models.parallel.forward import VideoTransformer

if TYPE_CHECKING:
    from models.families.vdit.transformer import Conditioning
    from models.methods.attention.thinned import ModelCall


class PackableTransformer(VideoTransformer, Protocol):
    """One that says, of everything it does by sequence, that it does: on tokens of any ``Layout``."""

    def run_blocks(
        self,
        tokens: Tensor,
        positions: Tensor,
        conditioning: Conditioning,
        text_mask: Tensor | None,
        attention: SelfAttention,
        layout: Layout = ...,
    ) -> Tensor:
        """(1, L, W) -> (1, L, W)."""

    def project(self, tokens: Tensor, conditioning: Conditioning, layout: Layout = ...) -> Tensor:
        """(1, L, W) -> (1, L, P)."""


def packed_forward(
    model: PackableTransformer, calls: Sequence[ModelCall], of_calls: Sequence[SelfAttention]
) -> list[Tensor]:
    """What ``ModelCall.run`` gives for each call and its attention, in one pass. Text of all calls is of one length."""
    grids = [model.config.grid(*call.latents.shape[2:]) for call in calls]
    tokens = [model.patchify(call.latents) for call in calls]
    layout = Packed(tuple((len(part), part.shape[1]) for part in tokens))
    positions = torch.cat(
        [
            model.positions(grid, call.latents.device).repeat(len(call.latents), 1)
            for grid, call in zip(grids, calls, strict=True)
        ]
    )
    conditioning = model.conditioning(
        torch.cat([call.timestep for call in calls]), torch.cat([call.text for call in calls])
    )
    mask = torch.cat([call.text_mask for call in calls])
    attention = PackedAttention(layout, of_calls)
    packed = model.run_blocks(layout.pack(tokens), positions, conditioning, mask, attention, layout)
    values = layout.unpack(model.project(packed, conditioning, layout))
    return [model.unpatchify(part, grid) for part, grid in zip(values, grids, strict=True)]
