"""The grouped experts against a plain loop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.methods.experts.gates import softmax_top_k
from models.methods.experts.grouped import grouped_swiglu, plain_swiglu


def _experts(h: int, f: int, num: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(num, 2 * f, h, dtype=dtype) / h**0.5, torch.randn(num, h, f, dtype=dtype) / f**0.5


@pytest.mark.parametrize(("h", "f"), [(16, 32), (6, 10)])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_equals_the_loop(h: int, f: int, k: int) -> None:
    gate_up, down = _experts(h, f, 5)
    x = torch.randn(23, h)
    ids, weights = softmax_top_k(torch.randn(23, 5), k)
    args = (x, gate_up, down, ids, weights)
    assert torch.allclose(grouped_swiglu(*args), plain_swiglu(*args), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_equal_those_of_the_loop(dtype: torch.dtype) -> None:
    gate_up, down = _experts(16, 32, 5, dtype)
    x, logits = torch.randn(23, 16, dtype=dtype), torch.randn(23, 5, dtype=dtype)
    logits[:, 3] = -1e9  # an expert that nobody asks
    grads = []
    for run in (grouped_swiglu, plain_swiglu):
        leaves = [leaf.clone().requires_grad_() for leaf in (x, gate_up, down, logits)]
        run(*leaves[:3], *softmax_top_k(leaves[3], 2)).square().sum().backward()
        grads.append([leaf.grad for leaf in leaves])
    for ours, theirs in zip(*grads, strict=True):
        assert ours is not None
        assert theirs is not None
        assert torch.allclose(ours, theirs, atol=1e-4)
