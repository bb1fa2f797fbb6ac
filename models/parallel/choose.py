"""From a kind of attention for one rank to the same on the shards of several."""

from __future__ import annotations

from collections.abc import Sequence

from models.methods.attention.adaspa import AdaSpaAttention
from models.methods.attention.base import SelfAttention
from models.methods.attention.dense import DenseAttention
from models.methods.attention.tile_attention import TileAttention
from models.parallel.groups import SequenceGroups
from models.parallel.head_ranking import AdaSpaOnRank
from models.parallel.layout import split
from models.parallel.ring import BlockKind, DenseBlocks, RingAttention
from models.parallel.tile_blocks import TileBlocks
from models.parallel.ulysses import UlyssesAttention
from models.parallel.usp import UspAttention


def sequence_parallel(attention: SelfAttention, groups: SequenceGroups, num_tokens: int) -> SelfAttention:
    """``attention`` over ``num_tokens`` in all, on the runs that ``layout.shard`` gives to each rank.

    Raises: ValueError: if the kind cannot go round a ring, or there are fewer tokens than ranks.
    """
    lengths = split(num_tokens, groups).lengths
    if groups.ring.size == 1:
        return UlyssesAttention(_on_rank(attention, groups), groups.ulysses, lengths=lengths)
    blocks = _blocks(lengths, groups.ulysses.size)
    ring = RingAttention(groups.ring, lengths=[sum(block) for block in blocks], kind=_kind(attention))
    return UspAttention(groups.ulysses, ring, lengths=blocks[groups.ring.rank])


def _on_rank(attention: SelfAttention, groups: SequenceGroups) -> SelfAttention:
    return AdaSpaOnRank(attention, groups.ulysses) if isinstance(attention, AdaSpaAttention) else attention


def _blocks(lengths: Sequence[int], ulysses: int) -> list[Sequence[int]]:
    """Lengths of the ranks behind each block that goes round the ring."""
    return [lengths[first : first + ulysses] for first in range(0, len(lengths), ulysses)]


def _kind(attention: SelfAttention) -> BlockKind:
    if isinstance(attention, DenseAttention):
        return DenseBlocks()
    if isinstance(attention, TileAttention):
        return TileBlocks(attention.frame_masks, attention.tokens_per_frame)
    raise ValueError(
        f"{type(attention).__name__} needs every key of a head on one rank and cannot go round a ring; "
        "use a ring degree of 1 and more ulysses ranks"
    )
