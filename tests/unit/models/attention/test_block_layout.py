"""Block layouts: bits, counts and shares, also where no block divides the length."""

from __future__ import annotations

import pytest
import torch

from models.methods.attention.adaspa_config import num_blocks, packed_bytes
from models.methods.attention.block_layout import BlockLayout, pack, unpack
from tests.support import attention_twins as twins


@pytest.mark.parametrize("blocks", [1, 3, 8, 13])
def test_packing_keeps_every_bit_in_the_bytes_that_are_counted(blocks: int) -> None:
    mask = twins.random_blocks(blocks)
    packed = pack(mask)
    assert packed.dtype == torch.uint8
    assert packed.shape == (2, 3, packed_bytes(blocks, blocks))
    assert torch.equal(unpack(packed, blocks, blocks), mask)


@pytest.mark.parametrize(("num_tokens", "block_tokens"), [(40, 8), (37, 8), (3, 8), (9, 1)])
def test_token_mask_and_sparsity_are_those_of_single_tokens(num_tokens: int, block_tokens: int) -> None:
    mask = twins.random_blocks(num_blocks(num_tokens, block_tokens))
    layout = BlockLayout(mask=mask, block_tokens=block_tokens, num_tokens=num_tokens)
    written_out = layout.token_mask()
    assert written_out.shape == (2, 3, num_tokens, num_tokens)
    for row, column in ((0, 0), (num_tokens - 1, 0), (num_tokens // 2, num_tokens - 1)):
        expected = mask[:, :, row // block_tokens, column // block_tokens]
        assert torch.equal(written_out[:, :, row, column], expected)
    assert layout.sparsity == pytest.approx(1 - written_out.double().mean().item())
    assert torch.equal(layout.counts, mask.sum(-1))


@pytest.mark.parametrize(
    "mask", [torch.ones(2, 3, 5, 4, dtype=torch.bool), torch.ones(2, 3, 5, 5), torch.ones(5, 5, dtype=torch.bool)]
)
def test_mask_that_does_not_fit_is_refused(mask: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"need bool \(B, N, 5, 5\)"):
        BlockLayout(mask=mask, block_tokens=8, num_tokens=37)


def test_no_tokens_make_no_blocks() -> None:
    with pytest.raises(ValueError, match="0 tokens"):
        num_blocks(0, 8)
