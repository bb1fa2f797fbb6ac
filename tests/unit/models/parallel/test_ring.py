"""Ring attention without a ring: one rank, and the blocks that several would see."""

from itertools import accumulate, pairwise

import pytest
import torch

from models.methods.attention.partial import Merge
from models.parallel.groups import Group
from models.parallel.ring import RingAttention
from models.parallel.tile_blocks import TileBlocks
from models.parallel.ulysses import UlyssesAttention

_TOKENS_PER_FRAME, _FRAMES = 5, 7


def _frame_mask(*references: int) -> torch.Tensor:
    mask = torch.eye(_FRAMES, dtype=torch.bool)
    mask[list(references)] = True
    mask[:, list(references)] = True
    return mask


def _qkv() -> torch.Tensor:
    return torch.randn(3, 2, _TOKENS_PER_FRAME * _FRAMES, 2, 8, generator=torch.Generator().manual_seed(1))


def _masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, frame_mask: torch.Tensor) -> torch.Tensor:
    mask = frame_mask.repeat_interleave(_TOKENS_PER_FRAME, 0).repeat_interleave(_TOKENS_PER_FRAME, 1)
    logits = torch.einsum("blnd,bmnd->bnlm", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("bnlm,bmnd->blnd", logits.masked_fill(~mask, -torch.inf).softmax(-1), v)


def test_one_rank_takes_the_same_path_and_equals_dense_attention() -> None:
    q, k, v = _qkv()
    out = UlyssesAttention(RingAttention(Group()), Group())(q, k, v, layer=0)
    torch.testing.assert_close(out, _masked(q, k, v, torch.ones(_FRAMES, _FRAMES, dtype=torch.bool)))


@pytest.mark.parametrize("references", [(), (0,), (1, 4), (0, 3, 6)])
@pytest.mark.parametrize("cuts", [(35,), (18, 17), (9, 9, 9, 8), (1, 34)])
def test_tile_mask_in_blocks_equals_the_mask_as_a_whole(references: tuple[int, ...], cuts: tuple[int, ...]) -> None:
    """Cuts fall inside frames; with few references some blocks hold no key that a query may see."""
    q, k, v = _qkv()
    mask = _frame_mask(*references)
    kind, out = TileBlocks([None, mask], _TOKENS_PER_FRAME), []
    runs = [slice(start, end) for start, end in pairwise(accumulate(cuts, initial=0))]
    for queries in runs:
        merge = Merge(tuple(q[:, queries].shape), q.device)
        for keys in runs:
            kind.add(merge, q[:, queries], k[:, keys], v[:, keys], queries, keys, 1)
        out.append(merge.result(q.dtype))
    torch.testing.assert_close(torch.cat(out, dim=1), _masked(q, k, v, mask))


def test_lengths_that_were_not_agreed_are_refused() -> None:
    q, k, v = _qkv()
    with pytest.raises(ValueError, match="has 35 tokens; 34 were agreed"):
        RingAttention(Group(), lengths=[34])(q, k, v, layer=0)
    with pytest.raises(ValueError, match="has 35 tokens where 34 were agreed"):
        UlyssesAttention(RingAttention(Group()), Group(), lengths=[34])(q, k, v, layer=0)
    with pytest.raises(ValueError, match="2 lengths were given for a ring of 1"):
        RingAttention(Group(), lengths=[17, 18])
