"""One suite for every backend of block-sparse attention: the answer is that of the mask written out.

Triton runs in its interpreter: the last test starts this file again with it switched on.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.methods.attention.adaspa_config import num_blocks
from models.methods.attention.adaspa_search import plain_block_mass
from models.methods.attention.block_layout import BlockLayout
from models.methods.attention.block_sparse import Backend, block_sparse_attention
from models.methods.attention.dense import reference
from models.methods.attention.triton_support import has_triton
from tests.support import attention_twins as twins

_ATOL = 3e-6  # float32, sums of up to 150 products and weights
_IN_INTERPRETER = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton's kernels run in its interpreter, which the last test of this file starts in a process of its own."""
_BACKENDS: list[Backend] = ["triton"] if _IN_INTERPRETER else ["cpu", "masked"]


@pytest.fixture(params=_BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    chosen: Backend = request.param
    return chosen


def _layout(mask: torch.Tensor, block_tokens: int, num_tokens: int) -> BlockLayout:
    return BlockLayout(mask=mask, block_tokens=block_tokens, num_tokens=num_tokens)


@pytest.mark.parametrize(
    ("num_tokens", "block_tokens", "dim"),
    [(64, 16, 16), (70, 16, 24), (5, 16, 48), (33, 32, 96), (150, 64, 8), (96, 16, 128)],
)
def test_ragged_blocks_equal_the_mask_written_out(
    backend: Backend, num_tokens: int, block_tokens: int, dim: int
) -> None:
    q, k, v = twins.qkv(num_tokens, dim=dim)
    mask = twins.random_blocks(num_blocks(num_tokens, block_tokens))
    layout = _layout(mask, block_tokens, num_tokens)
    out = block_sparse_attention(q, k, v, layout, backend=backend)
    torch.testing.assert_close(out, reference(q, k, v, layout.token_mask()), atol=_ATOL, rtol=0)


def test_sparsity_0_equals_dense(backend: Backend) -> None:
    q, k, v = twins.qkv(70)
    layout = _layout(torch.ones(2, 3, 5, 5, dtype=torch.bool), 16, 70)
    out = block_sparse_attention(q, k, v, layout, backend=backend)
    torch.testing.assert_close(out, reference(q, k, v), atol=_ATOL, rtol=0)


def test_rows_that_see_everything_beside_rows_that_see_nothing(backend: Backend) -> None:
    q, k, v = twins.qkv(70)
    mask = torch.zeros(2, 3, 5, 5, dtype=torch.bool)
    mask[0, 1], mask[1, 0, 2], mask[1, 2, 4] = True, True, True
    layout = _layout(mask, 16, 70)
    out = block_sparse_attention(q, k, v, layout, backend=backend)
    torch.testing.assert_close(out, reference(q, k, v, layout.token_mask()), atol=_ATOL, rtol=0)
    assert not out[0, :, 0].any()


def test_heads_may_keep_different_numbers_of_blocks(backend: Backend) -> None:
    q, k, v = twins.qkv(128, batch=1)
    mask = torch.cat([twins.random_blocks(8, batch=1, heads=1, share=share) for share in (0.1, 0.5, 0.9)], dim=1)
    layout = _layout(mask, 16, 128)
    out = block_sparse_attention(q, k, v, layout, backend=backend)
    torch.testing.assert_close(out, reference(q, k, v, layout.token_mask()), atol=_ATOL, rtol=0)


def test_large_scores_do_not_overflow(backend: Backend) -> None:
    q, k, v = twins.qkv(48)
    layout = _layout(twins.random_blocks(3, share=0.7), 16, 48)
    out = block_sparse_attention(100 * q, 100 * k, v, layout, backend=backend)
    expected = reference((100 * q).double(), (100 * k).double(), v.double(), layout.token_mask()).float()
    torch.testing.assert_close(out, expected, atol=5e-3, rtol=0)  # scores of 1e5 have a rounding error of 4e-3


def test_half_precision_is_as_good_as_its_inputs(backend: Backend) -> None:
    dtype = torch.float16 if backend == "triton" else torch.bfloat16  # Triton's interpreter multiplies no bfloat16
    q, k, v = (x.to(dtype) for x in twins.qkv(70))
    layout = _layout(twins.random_blocks(5), 16, 70)
    out = block_sparse_attention(q, k, v, layout, backend=backend)
    assert out.dtype == dtype
    expected = reference(q.float(), k.float(), v.float(), layout.token_mask())
    torch.testing.assert_close(out.float(), expected, atol=2e-2, rtol=0)  # bfloat16 has 8 bits of mantissa


def test_strided_tensors_are_taken(backend: Backend) -> None:
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in twins.qkv(40))
    layout = _layout(twins.random_blocks(3), 16, 40)
    out = block_sparse_attention(q, k, v, layout, backend=backend)
    torch.testing.assert_close(out, reference(q, k, v, layout.token_mask()), atol=_ATOL, rtol=0)


def test_tensors_of_another_layout_are_refused(backend: Backend) -> None:
    q, k, v = twins.qkv(41)
    with pytest.raises(ValueError, match=r"queries are \(2, 41, 3, 16\)"):
        block_sparse_attention(q, k, v, _layout(twins.random_blocks(3), 16, 40), backend=backend)


@pytest.mark.parametrize(("num_tokens", "block_tokens", "dim"), [(64, 16, 16), (70, 32, 96), (5, 16, 48)])
@pytest.mark.parametrize("side", ["triton"] if _IN_INTERPRETER else ["plain"])
def test_mass_of_blocks_equals_the_weights_written_out(side: str, num_tokens: int, block_tokens: int, dim: int) -> None:
    q, k, _ = twins.qkv(num_tokens, dim=dim)
    lse = twins.lse(q, k)
    if side == "triton":
        from models.methods.attention.triton_block_mass import triton_block_mass as block_mass
    else:
        block_mass = plain_block_mass
    expected = twins.block_mass(q, k, lse, block_tokens)
    torch.testing.assert_close(block_mass(q, k, lse, block_tokens), expected, atol=1e-5, rtol=1e-5)


def test_triton_refuses_blocks_that_its_kernels_do_not_take() -> None:
    q, k, v = twins.qkv(24)
    match = "not installed" if not has_triton() else "block_tokens is 8"
    with pytest.raises(ValueError, match=match):
        block_sparse_attention(q, k, v, _layout(twins.random_blocks(3), 8, 24), backend="triton")


@pytest.mark.skipif(not has_triton(), reason="triton is not installed: make test does it")
def test_suite_passes_in_tritons_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", "triton and not refuses and not suite", str(Path(__file__))],
        env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
