"""Gathering in several calls, and that nothing of size L x L is made."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from models.methods.attention import adaspa_search, gathered
from models.methods.attention.adaspa_search import plain_block_mass
from models.methods.attention.block_layout import BlockLayout
from models.methods.attention.dense import reference
from models.methods.attention.gathered import gathered_attention
from tests.support import attention_twins as twins


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that an operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("limit", ["_GATHERED_BYTES", "_ROW_BYTES"])
def test_many_small_calls_equal_the_mask_written_out(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(gathered, limit, 1)
    q, k, v = twins.qkv(83)
    layout = BlockLayout(mask=twins.random_blocks(11), block_tokens=8, num_tokens=83)
    expected = reference(q, k, v, layout.token_mask())
    torch.testing.assert_close(gathered_attention(q, k, v, layout), expected, atol=3e-6, rtol=0)


def test_attention_and_search_never_hold_all_pairs_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathered, "_GATHERED_BYTES", 1 << 12)
    monkeypatch.setattr(adaspa_search, "_SCORE_BYTES", 1 << 12)
    q, k, v = twins.qkv(1000, batch=1, heads=2)
    layout = BlockLayout(mask=twins.random_blocks(63, batch=1, heads=2), block_tokens=16, num_tokens=1000)
    lse = twins.lse(q, k)
    with LargestTensor() as largest:
        gathered_attention(q, k, v, layout)
        plain_block_mass(q, k, lse, 16)
    assert 0 < largest.numel < 1000 * 1000 / 10
