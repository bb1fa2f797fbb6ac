"""AdaSpa's choice equals a plain twin that holds all weights, for the numbers of the paper and for odd lengths."""

from __future__ import annotations

import pytest
import torch

from models.methods.attention import adaspa_search
from models.methods.attention.adaspa_config import AdaSpaConfig, searches_for
from models.methods.attention.adaspa_search import adapt_heads, block_mass, choose_blocks, recall
from tests.support import attention_twins as twins


@pytest.mark.parametrize(("num_tokens", "block_tokens"), [(64, 8), (61, 8), (5, 8), (100, 16)])
@pytest.mark.parametrize("score_bytes", [1, 1 << 20])
def test_mass_equals_the_weights_written_out(
    monkeypatch: pytest.MonkeyPatch, num_tokens: int, block_tokens: int, score_bytes: int
) -> None:
    monkeypatch.setattr(adaspa_search, "_SCORE_BYTES", score_bytes)
    q, k, _ = twins.qkv(num_tokens)
    lse = twins.lse(q, k)
    mass = block_mass(q, k, lse, block_tokens)
    torch.testing.assert_close(mass, twins.block_mass(q, k, lse, block_tokens), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mass.sum((-1, -2)), torch.full((2, 3), float(num_tokens)))


def test_mass_by_the_lse_of_another_step_equals_the_weights_written_out() -> None:
    q, k, _ = twins.qkv(61)
    earlier = twins.lse(*twins.qkv(61, seed=1)[:2])
    mass = block_mass(q, k, earlier, 8)
    torch.testing.assert_close(mass, twins.block_mass(q, k, earlier, 8), atol=1e-4, rtol=1e-5)


def test_mass_by_a_hopelessly_stale_lse_stays_finite() -> None:
    q, k, _ = twins.qkv(61)
    assert block_mass(30 * q, 30 * k, torch.zeros(2, 3, 61), 8).isfinite().all()


@pytest.mark.parametrize("num_text_tokens", [0, 3, 8, 20])
@pytest.mark.parametrize("num_tokens", [96, 91])
def test_choice_equals_the_plain_builder(num_tokens: int, num_text_tokens: int) -> None:
    config = AdaSpaConfig(sparsity=0.7, block_tokens=8, num_text_tokens=num_text_tokens, head_adaptive=False)
    q, k, _ = twins.qkv(num_tokens)
    lse = twins.lse(q, k)
    mass = block_mass(q, k, lse, 8)
    torch.testing.assert_close(mass, twins.block_mass(q, k, lse, 8), atol=1e-4, rtol=1e-5)
    num_text_blocks = 12 - (num_tokens - num_text_tokens) // 8 if num_text_tokens else 0
    expected = twins.choose(mass, [[0.7] * 3] * 2, num_text_blocks)  # of the same mass: rounding may turn a near tie
    assert torch.equal(choose_blocks(mass, config, num_tokens), expected)


def test_text_sees_and_is_seen_by_everything() -> None:
    config = AdaSpaConfig(sparsity=0.9, block_tokens=8, num_text_tokens=11)
    q, k, _ = twins.qkv(100)
    mask = choose_blocks(block_mass(q, k, twins.lse(q, k), 8), config, 100)
    assert mask[..., 11:, :].all()
    assert mask[..., 11:].all()
    assert not mask[..., :11, :11].any(-1).all()


def test_head_adaptive_choice_equals_the_plain_builder() -> None:
    config = AdaSpaConfig(sparsity=0.6, block_tokens=8, recall_threshold=0.55)
    q, k, _ = twins.qkv(80, heads=4)
    scale = torch.tensor([0.1, 4.0, 0.1, 8.0]).view(1, 1, 4, 1)  # peaked heads recall much with few blocks
    mass = block_mass(q * scale, k, twins.lse(q * scale, k), 8)
    assert (recall(mass, config, 80) > 0.55).tolist() == [[False, True, False, True]] * 2
    expected = twins.choose(mass, [[_worst(mass, row, head) for head in range(4)] for row in range(2)], 0)
    assert torch.equal(choose_blocks(mass, config, 80), expected)


def _worst(mass: torch.Tensor, row: int, head: int) -> float:
    """n = 2 of 4 heads: 0.8 for the peaked ones, 0.4 for the others."""
    return 0.8 if head in (1, 3) else 0.4


@pytest.mark.parametrize(
    ("recalls", "sparsities"),
    [
        ([0.95, 0.1, 0.3, 0.2], [0.9, 0.7, 0.8, 0.8]),  # one above: the best and the worst change
        ([0.95, 0.9, 0.85, 0.99], [0.9, 0.7, 0.7, 0.9]),  # all above: half of the heads
        ([0.5, 0.6, 0.7, 0.8], [0.8, 0.8, 0.8, 0.8]),  # none above
        ([0.9, 0.95, 0.99], [0.7, 0.8, 0.9]),  # odd number of heads
        ([0.99], [0.8]),
        ([0.9, 0.9, 0.9, 0.9], [0.9, 0.9, 0.7, 0.7]),  # equal: the first are the best
    ],
)
def test_best_heads_become_sparser_and_worst_denser(recalls: list[float], sparsities: list[float]) -> None:
    adapted = adapt_heads(torch.tensor([recalls]), AdaSpaConfig(sparsity=0.8))
    assert adapted[0].tolist() == pytest.approx(sparsities)
    assert adapted.mean().item() == pytest.approx(0.8)


def test_low_sparsity_stays_within_0_and_1_and_keeps_its_mean() -> None:
    adapted = adapt_heads(torch.tensor([[0.9, 0.1]]), AdaSpaConfig(sparsity=0.2))
    assert adapted[0].tolist() == pytest.approx([0.4, 0.0])


def test_rows_of_the_batch_choose_apart() -> None:
    config = AdaSpaConfig(sparsity=0.6, block_tokens=8)
    q, k, _ = twins.qkv(80, batch=3, heads=4)
    lse = twins.lse(q, k)
    mass = block_mass(q, k, lse, 8)
    each = [block_mass(q[i : i + 1], k[i : i + 1], lse[i : i + 1], 8) for i in range(3)]
    torch.testing.assert_close(mass, torch.cat(each), atol=1e-4, rtol=1e-5)  # a batch of another size, another kernel
    alone = [choose_blocks(mass[i : i + 1], config, 80) for i in range(3)]
    assert torch.equal(choose_blocks(mass, config, 80), torch.cat(alone))
    assert not torch.equal(alone[0], alone[1])


def test_at_least_one_block_is_kept() -> None:
    config = AdaSpaConfig(sparsity=0.99, block_tokens=8)
    q, k, _ = twins.qkv(40)
    assert (choose_blocks(block_mass(q, k, twins.lse(q, k), 8), config, 40).sum(-1) == 1).all()


@pytest.mark.parametrize(
    ("num_steps", "searches"), [(50, (9, 29)), (20, (3, 11)), (100, (19, 59)), (4, (0, 1)), (1, (0,))]
)
def test_searches_scale_with_the_number_of_steps(num_steps: int, searches: tuple[int, ...]) -> None:
    assert searches_for(num_steps) == searches


@pytest.mark.parametrize(
    "wrong",
    [
        {"sparsity": 1.0}, {"sparsity": -0.1}, {"block_tokens": 0}, {"search_steps": ()}, {"search_steps": (5, 5)},
        {"search_steps": (-1,)}, {"num_text_tokens": -1}, {"recall_threshold": 1.5}, {"sparsity": float("nan")},
    ],
)  # fmt: skip
def test_config_out_of_range_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AdaSpaConfig(**wrong)  # type: ignore[arg-type]


def test_more_text_than_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="50 text tokens in a sequence of 40"):
        choose_blocks(torch.ones(1, 1, 5, 5), AdaSpaConfig(block_tokens=8, num_text_tokens=50), 40)
