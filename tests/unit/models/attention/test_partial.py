"""Parts of attention, merged, are attention."""

import math

import pytest
import torch

from models.methods.attention.partial import Merge, attention_with_lse, plain_attention_with_lse


def _qkv(length: int = 11, keys: int = 23) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, length, 3, 8, generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, 2, keys, 3, 8, generator=generator, dtype=torch.float64)
    return q, k, v


def _plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    weights = torch.einsum("blnd,bmnd->bnlm", q, k).div(math.sqrt(q.shape[-1])).softmax(-1)
    return torch.einsum("bnlm,bmnd->blnd", weights, v)


def test_lse_of_the_fast_path_is_that_of_the_plain_twin() -> None:
    q, k, v = (x.float() for x in _qkv())
    out, lse = attention_with_lse(q, k, v)
    plain_out, plain_lse = plain_attention_with_lse(*(x.transpose(1, 2) for x in (q, k, v)))
    torch.testing.assert_close(out, plain_out.transpose(1, 2))
    torch.testing.assert_close(lse, plain_lse.transpose(1, 2))


@pytest.mark.parametrize("cuts", [(23,), (1, 22), (5, 5, 13)])
def test_merged_parts_equal_attention_over_all_keys(cuts: tuple[int, ...]) -> None:
    q, k, v = _qkv()
    merge = Merge(tuple(q.shape), q.device)
    for part_k, part_v in zip(k.split(cuts, dim=1), v.split(cuts, dim=1), strict=True):
        merge.add(*attention_with_lse(q.float(), part_k.float(), part_v.float()))
    torch.testing.assert_close(merge.result(torch.float64), _plain(q, k, v), atol=2e-6, rtol=0)  # float32 sums


def test_a_part_far_above_the_others_does_not_overflow() -> None:
    q, k, v = _qkv()
    k[:, :5] *= 300
    merge = Merge(tuple(q.shape), q.device)
    for part in (slice(5, None), slice(0, 5)):
        merge.add(*attention_with_lse(q.float(), k[:, part].float(), v[:, part].float()))
    torch.testing.assert_close(merge.result(torch.float64), _plain(q, k, v), atol=1e-4, rtol=0)  # logits near 1,000


def test_rows_that_no_part_reached_are_zero_and_take_the_first_part_whole() -> None:
    q, k, v = (x.float() for x in _qkv())
    merge = Merge(tuple(q.shape), q.device)
    rows = torch.tensor([2, 7])
    part = attention_with_lse(q[:, rows], k, v)
    merge.add(*part, rows)
    out = merge.result(torch.float32)
    assert torch.equal(out[:, rows], part[0])
    assert not out[:, [0, 1, 3, 4, 5, 6, 8, 9, 10]].any()
