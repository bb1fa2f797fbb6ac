"""AdaSpa through the denoising steps of a request: dense, searched, reused, searched again, freed."""

from __future__ import annotations

import pytest
import torch

from models.methods.attention import adaspa as module
from models.methods.attention.adaspa import AdaSpaAttention
from models.methods.attention.adaspa_config import AdaSpaConfig
from models.methods.attention.adaspa_search import choose_blocks
from models.methods.attention.block_layout import BlockLayout
from models.methods.attention.dense import DENSE, reference
from tests.support import attention_twins as twins

_TOKENS, _BLOCK = 83, 8
_CONFIG = AdaSpaConfig(sparsity=0.6, block_tokens=_BLOCK, search_steps=(1, 3), num_text_tokens=5)


def _expected(inputs: tuple[torch.Tensor, ...], searched: tuple[torch.Tensor, ...], lse: torch.Tensor) -> torch.Tensor:
    """Attention of ``inputs`` under the choice by the weights of ``searched``, all written out."""
    mask = choose_blocks(twins.block_mass(*searched[:2], lse, _BLOCK), _CONFIG, _TOKENS)
    layout = BlockLayout(mask=mask, block_tokens=_BLOCK, num_tokens=_TOKENS)
    return reference(*inputs, layout.token_mask())


def _run(attention: AdaSpaAttention, step: int, layer: int = 0, branch: int = 0, seed: int = -1) -> torch.Tensor:
    attention.begin_step(step, branch)
    return attention(*_inputs(step if seed < 0 else seed), layer=layer)


def _inputs(seed: int) -> tuple[torch.Tensor, ...]:
    return twins.qkv(_TOKENS, heads=4, seed=seed)


def test_steps_are_dense_then_by_the_last_search() -> None:
    attention = AdaSpaAttention(_CONFIG)
    lse = twins.lse(*_inputs(1)[:2])  # of the first search; the second reuses it
    for step in range(6):
        out = _run(attention, step)
        searched = {0: None, 1: None, 2: 1}.get(step, 3)
        expected = reference(*_inputs(step)) if searched is None else _expected(_inputs(step), _inputs(searched), lse)
        torch.testing.assert_close(out, expected, atol=3e-6, rtol=0)
        assert (attention.achieved_sparsity > 0.3) == (step >= 2)


def test_layers_and_branches_have_choices_of_their_own() -> None:
    attention = AdaSpaAttention(_CONFIG)
    places = [(layer, branch) for layer in range(2) for branch in range(2)]
    for number, (layer, branch) in enumerate(places):
        _run(attention, 1, layer, branch, seed=10 + number)
    for number, (layer, branch) in enumerate(places):
        searched = _inputs(10 + number)
        out = _run(attention, 2, layer, branch)
        expected = _expected(_inputs(2), searched, twins.lse(*searched[:2]))
        torch.testing.assert_close(out, expected, atol=3e-6, rtol=0)


def test_sparsity_0_is_dense_at_every_step_and_keeps_nothing() -> None:
    attention = AdaSpaAttention(AdaSpaConfig(sparsity=0.0, block_tokens=_BLOCK, search_steps=(0,)))
    for step in range(3):
        assert torch.equal(_run(attention, step), DENSE(*_inputs(step)))
    assert attention.state_bytes == 0


def test_bytes_are_those_predicted_and_freed() -> None:
    attention = AdaSpaAttention(_CONFIG)
    predicted = _CONFIG.predicted_bytes(num_layers=3, num_tokens=_TOKENS, num_heads=4, batch=2, branches=2)
    for branch in range(2):
        for layer in range(3):
            _run(attention, 1, layer, branch)
    assert attention.state_bytes == predicted
    for branch in range(2):
        for layer in range(3):
            _run(attention, 3, layer, branch)
    assert attention.state_bytes == predicted - 2 * 3 * 2 * 4 * 4 * _TOKENS  # the last search needs no LSE after it
    attention.release()
    assert attention.state_bytes == 0


def test_hunyuan_bytes_are_the_published_order() -> None:
    """686 MB of LSE and 0.62 GB of bits for 60 layers, 24 heads, 118,800 + 256 tokens."""
    config = AdaSpaConfig(num_text_tokens=256)
    assert config.predicted_bytes(60, 119_056, 24, 1) == pytest.approx(0.686e9 + 0.62e9, rel=0.01)


def test_one_search_keeps_no_lse() -> None:
    config = AdaSpaConfig(sparsity=0.6, block_tokens=_BLOCK, search_steps=(0,))
    attention = AdaSpaAttention(config)
    _run(attention, 0)
    assert attention.state_bytes == config.predicted_bytes(1, _TOKENS, 4, 2) == 2 * 4 * 16


def test_request_that_starts_in_the_middle_searches_first() -> None:
    attention = AdaSpaAttention(_CONFIG)
    assert not attention.is_warm
    torch.testing.assert_close(_run(attention, 4), reference(*_inputs(4)), atol=3e-6, rtol=0)
    assert attention.is_warm
    expected = _expected(_inputs(5), _inputs(4), twins.lse(*_inputs(4)[:2]))
    torch.testing.assert_close(_run(attention, 5), expected, atol=3e-6, rtol=0)


def test_search_takes_one_pass_when_the_lse_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[str] = []
    dense, mass = module.attention_with_lse, module.block_mass
    monkeypatch.setattr(module, "attention_with_lse", lambda *x: passes.append("dense") or dense(*x))
    monkeypatch.setattr(module, "block_mass", lambda *x: passes.append("mass") or mass(*x))
    attention = AdaSpaAttention(_CONFIG)
    for step in range(5):
        _run(attention, step)
    assert passes == ["dense", "mass", "mass"]
    assert attention.search_seconds > 0


def test_two_requests_share_nothing() -> None:
    first, second = AdaSpaAttention(_CONFIG), AdaSpaAttention(_CONFIG)
    _run(first, 1)
    assert second.state_bytes == 0
    _run(second, 1, seed=7)
    assert not torch.equal(_run(first, 2), _run(second, 2))


def test_negative_step_is_refused() -> None:
    with pytest.raises(ValueError, match="step -1"):
        AdaSpaAttention(_CONFIG).begin_step(-1)
