"""The grouped experts against a plain loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from models.methods.experts import fused
from models.methods.experts.dispatch import by_token
from models.methods.experts.gates import expert_choice, softmax_top_k
from models.methods.experts.grouped import PreparedExperts, dispatched_swiglu, grouped_swiglu, plain_swiglu

SMALL, ODD = (16, 32), (6, 10)  # the latter's rows are not aligned


def _experts(shape: tuple[int, int], num: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    h, f = shape
    torch.manual_seed(0)
    return torch.randn(num, 2 * f, h, dtype=dtype) / h**0.5, torch.randn(num, h, f, dtype=dtype) / f**0.5


@pytest.fixture(params=["grouped", "fused"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Small experts run either way."""
    if request.param == "fused":
        monkeypatch.setattr(fused, "_MIN_WEIGHTS", 0)
        monkeypatch.setattr(fused, "_MAX_ROWS", 8)
    return str(request.param)


@settings(deadline=None, max_examples=30)
@given(st.data())
@pytest.mark.parametrize("shape", [SMALL, ODD])
@pytest.mark.parametrize("is_fused", [False, True])
def test_any_choice_of_experts_equals_the_loop(is_fused: bool, shape: tuple[int, int], data: st.DataObject) -> None:
    num_tokens, num = data.draw(st.integers(0, 40)), data.draw(st.integers(1, 6))
    k = data.draw(st.integers(1, num))
    gate_up, down = _experts(shape, num)
    x, weights = torch.randn(num_tokens, shape[0]), torch.rand(num_tokens, k)
    pull = data.draw(st.lists(st.sampled_from([0.0, 1.0, 100.0]), min_size=num, max_size=num))  # towards some experts
    ids = (torch.rand(num_tokens, num) + torch.tensor(pull)).topk(k, dim=1).indices
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "_MIN_WEIGHTS", 0 if is_fused else 1 << 40)
        patch.setattr(fused, "_MAX_ROWS", 8)
        ours = grouped_swiglu(x, gate_up, down, ids, weights)
    torch.testing.assert_close(ours, plain_swiglu(x, gate_up, down, ids, weights), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 50])
def test_all_tokens_to_one_expert(way: str, num_tokens: int) -> None:
    gate_up, down = _experts(SMALL, 5)
    x, weights = torch.randn(num_tokens, 16), torch.rand(num_tokens, 1)
    args = (x, gate_up, down, torch.full((num_tokens, 1), 3), weights)
    torch.testing.assert_close(grouped_swiglu(*args), plain_swiglu(*args), atol=1e-5, rtol=1e-5)


def test_ties_are_routed_to_different_experts(way: str) -> None:
    gate_up, down = _experts(SMALL, 5)
    ids, weights = softmax_top_k(torch.zeros(7, 5), 2)
    assert bool((ids[:, 0] != ids[:, 1]).all())
    args = (torch.randn(7, 16), gate_up, down, ids, weights)
    torch.testing.assert_close(grouped_swiglu(*args), plain_swiglu(*args), atol=1e-5, rtol=1e-5)


def test_fewer_experts_are_the_best_ones_with_their_weights() -> None:
    logits = torch.randn(20, 8)
    one, two = softmax_top_k(logits, 1), softmax_top_k(logits, 2)
    assert torch.equal(one.ids, two.ids[:, :1])
    assert torch.equal(one.weights, two.weights[:, :1])
    with pytest.raises(ValueError, match="9 of 8"):
        softmax_top_k(logits, 9)


def test_no_token_is_dropped(way: str) -> None:
    """Experts that all do the same, with weights that sum to one, are one expert."""
    gate_up, down = _experts(SMALL, 1)
    x, logits = torch.randn(64, 16), torch.randn(64, 6) * 8
    ids, weights = softmax_top_k(logits, 3)
    ours = grouped_swiglu(
        x,
        gate_up.expand(6, -1, -1).contiguous(),
        down.expand(6, -1, -1).contiguous(),
        ids,
        weights / weights.sum(1, keepdim=True),
    )
    torch.testing.assert_close(ours, _swiglu(x, gate_up[0], down[0]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_tokens", [1, 7, 30])
def test_the_shared_expert_is_added(way: str, num_tokens: int) -> None:
    gate_up, down = _experts(SMALL, 5)
    shared = (torch.randn(40, 16), torch.randn(16, 20))
    x = torch.randn(num_tokens, 16)
    ids, weights = softmax_top_k(torch.randn(num_tokens, 5), 2)
    expected = plain_swiglu(x, gate_up, down, ids, weights) + _swiglu(x, *shared)
    ours = grouped_swiglu(x, gate_up, down, ids, weights, shared)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    prepared = PreparedExperts(gate_up, down, shared)(x, ids, weights)
    torch.testing.assert_close(prepared, expected, atol=1e-5, rtol=1e-5)


def test_bfloat16_is_as_near_as_its_rounding(way: str) -> None:
    gate_up, down = _experts((64, 128), 5)
    x = torch.randn(40, 64)
    routing = softmax_top_k(torch.randn(40, 5), 2)
    exact = plain_swiglu(x, gate_up, down, *routing)
    half = [tensor.bfloat16() for tensor in (x, gate_up, down)]
    ours = grouped_swiglu(*half, routing.ids, routing.weights.bfloat16())
    assert ours.dtype == torch.bfloat16
    assert float((ours.float() - exact).abs().max()) < 0.02 * float(exact.abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_prepared", [False, True])
def test_a_row_has_the_same_bits_in_every_batch(dtype: torch.dtype, is_prepared: bool) -> None:
    """Of the size that is fused; others agree to rounding."""
    gate_up, down = (weight.to(dtype) for weight in _experts((256, 512), 4))
    shared = (gate_up[0, :256].contiguous(), down[0, :, :128].contiguous())
    assert PreparedExperts.suit(gate_up, down)
    x = torch.randn(600, 256).to(dtype)
    ids, weights = softmax_top_k(torch.randn(600, 4), 2)
    weights = weights.to(dtype)
    prepared = PreparedExperts(gate_up, down, shared)

    def run(some: slice) -> Tensor:
        routed = (x[some], ids[some], weights[some])
        if is_prepared:
            return prepared(*routed)
        return grouped_swiglu(routed[0], gate_up, down, *routed[1:], shared)

    whole = run(slice(None))
    for some in (slice(0, 1), slice(5, 8), slice(100, 164), slice(300, 600)):
        assert torch.equal(run(some), whole[some])


@pytest.mark.parametrize("num_tokens", [1, 3, 64])
def test_small_experts_agree_in_every_batch(num_tokens: int) -> None:
    gate_up, down = _experts((128, 256), 4)
    x = torch.randn(200, 128)
    ids, weights = softmax_top_k(torch.randn(200, 4), 2)
    whole = grouped_swiglu(x, gate_up, down, ids, weights)[:num_tokens]
    alone = grouped_swiglu(x[:num_tokens], gate_up, down, ids[:num_tokens], weights[:num_tokens])
    torch.testing.assert_close(alone, whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [SMALL, ODD])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_equal_those_of_the_loop(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    gate_up, down = _experts(shape, 5, dtype)
    x, logits = torch.randn(23, shape[0], dtype=dtype), torch.randn(23, 5, dtype=dtype)
    logits[:, 3] = -1e9  # an expert that nobody asks
    grads = []
    for run in (grouped_swiglu, plain_swiglu):
        leaves = [leaf.clone().requires_grad_() for leaf in (x, gate_up, down, logits)]
        run(*leaves[:3], *softmax_top_k(leaves[3], 2)).square().sum().backward()
        grads.append([leaf.grad for leaf in leaves])
    for ours, theirs in zip(*grads, strict=True):
        assert ours is not None
        assert theirs is not None
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_gradients_of_expert_choice() -> None:
    """Against differences; a token that nobody takes has none."""
    gate_up, down = _experts(ODD, 3, torch.float64)
    x, scores = torch.randn(8, 6, dtype=torch.float64), torch.rand(1, 8, 3, dtype=torch.float64) + 0.1
    scores[0, 2] = 1e-3

    def run(x: Tensor, scores: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        return dispatched_swiglu(x, gate_up, down, expert_choice(scores, 1.0))

    leaves = [leaf.requires_grad_() for leaf in (x, scores, gate_up, down)]
    assert torch.autograd.gradcheck(run, leaves)
    assert bool((run(*leaves)[2] == 0).all())


def test_a_dispatch_names_every_pair_once() -> None:
    ids, weights = softmax_top_k(torch.randn(30, 6), 2)
    dispatch = by_token(ids, weights, 6)
    begins = F.pad(dispatch.ends[:-1], (1, 0))
    pairs = {
        (int(token), expert)
        for expert, (a, b) in enumerate(zip(begins, dispatch.ends, strict=True))
        for token in dispatch.tokens[a:b]
    }
    assert pairs == {(token, int(expert)) for token in range(30) for expert in ids[token]}
    assert dispatch.slots.sort().values.tolist() == list(range(60))


def _swiglu(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = F.linear(x, gate_up).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, down)
