"""Attention by dense calls equals the mask written out, and plans are kept within bounds."""

from __future__ import annotations

import pytest
import torch

from models.methods.attention import tile_attention
from models.methods.attention.dense import DENSE, reference
from models.methods.attention.tile_attention import TileAttention, TilePlans
from models.methods.attention.tile_mask import TileMask


def _qkv(num_tokens: int, batch: int = 2, heads: int = 3, dim: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(num_tokens)
    return [torch.randn(batch, num_tokens, heads, dim, generator=generator) for _ in range(3)]


@pytest.mark.parametrize(
    ("grid", "references"),
    [((8, 3, 5), 2), ((7, 2, 3), 0), ((5, 1, 4), 5), ((24, 3, 5), 3), ((1, 2, 3), 1), ((1, 2, 3), 0), ((6, 1, 1), 1)],
)
def test_equals_the_mask_written_out(grid: tuple[int, int, int], references: int) -> None:
    mask = TileMask(num_frames=grid[0], references=references)
    q, k, v = _qkv(grid[0] * grid[1] * grid[2])
    expected = reference(q, k, v, mask.token_mask(grid[1] * grid[2]))
    torch.testing.assert_close(TileAttention([mask], grid)(q, k, v, layer=0), expected, atol=2e-6, rtol=0)


def test_frames_in_several_calls_equal_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    mask, grid = TileMask(num_frames=7, references=2), (7, 3, 4)
    q, k, v = _qkv(84)
    at_once = TileAttention([mask], grid)(q, k, v, layer=0)
    monkeypatch.setattr(tile_attention, "_GATHERED_BYTES", 1)
    torch.testing.assert_close(
        TileAttention([mask], grid)(q, k, v, layer=0), at_once, atol=2e-6, rtol=0
    )  # other shapes


def test_each_layer_has_its_own_mask_and_none_is_dense() -> None:
    masks = [None, TileMask(num_frames=4, references=0), TileMask(num_frames=4, references=4)]
    q, k, v = _qkv(24)
    attention = TileAttention(masks, (4, 2, 3))
    dense = DENSE(q, k, v)
    assert torch.equal(attention(q, k, v, layer=0), dense)
    assert torch.equal(attention(q, k, v, layer=2), dense)
    assert not torch.allclose(attention(q, k, v, layer=1), dense, atol=1e-2)
    assert attention.achieved_sparsity == pytest.approx(12 / 16 / 3)


def test_plan_is_made_once_for_a_grid_mask_and_device() -> None:
    plans, mask = TilePlans(), TileMask(num_frames=4, references=1)
    device = torch.device("cpu")
    assert plans.get((4, 2, 3), mask, device) is plans.get((4, 2, 3), TileMask.parse("1:3"), device)
    assert plans.get((4, 3, 2), mask, device) is not plans.get((4, 2, 3), mask, device)


def test_plans_are_bounded_and_the_least_used_goes_first() -> None:
    plans, device = TilePlans(capacity=2), torch.device("cpu")
    first, second, third = (TileMask(num_frames=4, references=k) for k in (1, 2, 3))
    kept = plans.get((4, 1, 1), first, device)
    plans.get((4, 1, 1), second, device)
    assert plans.get((4, 1, 1), first, device) is kept
    plans.get((4, 1, 1), third, device)
    assert len(plans) == 2
    assert plans.get((4, 1, 1), first, device) is kept


def test_tokens_of_another_grid_are_refused() -> None:
    attention = TileAttention([TileMask(num_frames=4, references=1)], (4, 2, 3))
    with pytest.raises(ValueError, match="25 queries"):
        attention(*_qkv(25), layer=0)
    with pytest.raises(ValueError, match="layer 1 has no tile mask"):
        attention(*_qkv(24), layer=1)
    with pytest.raises(ValueError, match="2:6 does not fit 4"):
        TileAttention([TileMask.parse("2:6")], (4, 2, 3))
