"""A whole video transformer on several ranks.

Every rank has the latents (small) and the text; each runs the blocks on its own run of tokens and the values that come
out, a few per token, are gathered. Only self-attention exchanges anything in between.

Legend: B batch, L tokens, W width, P values of a patch; l tokens of this rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from models.parallel.branches import all_rows, own_rows
from models.parallel.choose import sequence_parallel
from models.parallel.groups import SequenceGroups
from models.parallel.layout import gather, shard

if TYPE_CHECKING:
    from models.families.vdit.config import OpenSoraConfig
    from models.families.vdit.transformer import Conditioning
    from models.methods.attention.base import SelfAttention


class VideoTransformer(Protocol):
    """The part of ``models.families.vdit.OpenSoraT2V`` that region-adaptive sampling and this module call."""

    config: OpenSoraConfig

    def patchify(self, latents: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, L, W)."""

    def positions(self, grid: tuple[int, int, int], device: torch.device | str = "cpu") -> Tensor:
        """(L, 3)."""

    def conditioning(self, timestep: Tensor, text: Tensor) -> Conditioning:
        """What all blocks are given."""

    def run_blocks(
        self,
        tokens: Tensor,
        positions: Tensor,
        conditioning: Conditioning,
        text_mask: Tensor | None,
        attention: SelfAttention,
    ) -> Tensor:
        """(B, l, W) -> (B, l, W) for any subset of the tokens."""

    def project(self, tokens: Tensor, conditioning: Conditioning) -> Tensor:
        """(B, l, W) -> (B, l, P)."""

    def unpatchify(self, values: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """(B, L, P) -> (B, out, T, H, W)."""


class ShardedTransformer:
    """``model`` with the same methods, of which two differ: ``run_blocks`` takes all tokens and returns this rank's,
    and ``project`` takes this rank's and returns the values of all. Code that drives the model in these steps (a plain
    forward, or region-adaptive sampling with its active tokens) runs on several ranks without knowing.

    With a cfg degree of 2 the same goes for rows: each rank runs one branch of every request, see ``branches``.
    """

    def __init__(self, model: VideoTransformer, groups: SequenceGroups) -> None:
        self._model = model
        self._groups = groups
        self.config = model.config
        self.patchify, self.positions = model.patchify, model.positions
        self.conditioning, self.unpatchify = model.conditioning, model.unpatchify

    def run_blocks(
        self,
        tokens: Tensor,
        positions: Tensor,
        conditioning: Conditioning,
        text_mask: Tensor | None,
        attention: SelfAttention,
    ) -> Tensor:
        """(B, L, W) and (L, 3) or (B, L, 3) -> (B / cfg, l, W)."""
        groups = self._groups
        parallel = sequence_parallel(attention, groups, tokens.shape[1])
        if positions.ndim == 2:
            mine = shard(positions[None], groups)[0]
        else:
            mine = shard(own_rows(positions, groups.cfg), groups)
        mask = None if text_mask is None else own_rows(text_mask, groups.cfg)
        own = shard(own_rows(tokens, groups.cfg), groups)
        return self._model.run_blocks(own, mine, self._own(conditioning), mask, parallel)

    def project(self, tokens: Tensor, conditioning: Conditioning) -> Tensor:
        """(B / cfg, l, W) -> (B, L, P)."""
        values = gather(self._model.project(tokens, self._own(conditioning)), self._groups)
        return all_rows(values, self._groups.cfg)

    def _own(self, conditioning: Conditioning) -> Conditioning:
        return type(conditioning)(*(own_rows(one, self._groups.cfg) for one in conditioning))


def parallel_forward(
    transformer: VideoTransformer,
    latents: Tensor,
    timestep: Tensor,
    text: Tensor,
    text_mask: Tensor | None,
    groups: SequenceGroups,
    attention: SelfAttention,
) -> Tensor:
    """``transformer.forward``, given the same arguments on every rank of an instance; the result is on all too.

    (B, C, T, H, W) -> (B, out, T, H, W). Kinds of attention with state need one object for each rank: with Ulysses it
    holds the state of that rank's heads.
    """
    model = ShardedTransformer(transformer, groups)
    grid = model.config.grid(*latents.shape[2:])
    conditioning = model.conditioning(timestep, text)
    positions = model.positions(grid, latents.device)
    tokens = model.run_blocks(model.patchify(latents), positions, conditioning, text_mask, attention)
    return model.unpatchify(model.project(tokens, conditioning), grid)
