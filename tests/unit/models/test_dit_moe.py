"""What the checks of all families do not say of DiT-MoE: its published sizes and names, and what training adds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.families.dit_moe.config import NANO, DitMoeConfig
from models.families.dit_moe.network import DitMoe, Gated, balance_loss

TINY = replace(NANO, width=16, depth=2, num_heads=2, num_experts=3, latent_side=4)


def test_state_has_the_published_names_and_is_read_back() -> None:
    network, other = DitMoe(TINY), DitMoe(TINY)
    state = network.state_dict()
    assert state["blocks.1.moe.experts.2.up_proj.weight"].shape == (16, 16)
    assert state["blocks.0.moe.shared_experts.down_proj.weight"].shape == (16, 16)
    assert not [name for name in state if "gate_up" in name]
    other.load_state_dict(state)
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    del state["blocks.1.moe.experts.2.up_proj.weight"]
    with pytest.raises(RuntimeError, match=r"blocks\.1\.moe\.experts"):
        other.load_state_dict(state)


def test_loss_is_one_a_layer_where_experts_share_alike() -> None:
    even = Gated(torch.zeros(4, 2), torch.tensor([[0], [1], [0], [1]]))
    skewed = Gated(torch.tensor([[0.9, 0.1]]).log().expand(4, 2), torch.zeros(4, 1, dtype=torch.long))
    assert balance_loss([even, even]).item() == pytest.approx(2)
    assert balance_loss([skewed]).item() == pytest.approx(1.8)


def test_untrained_network_says_nothing() -> None:
    network = DitMoe(TINY)
    latents = torch.randn(2, 4, 4, 4)
    output = network(latents, torch.tensor([1.0, 0.5]), torch.tensor([0, TINY.null_class]))
    assert output.shape == latents.shape
    assert not output.any()


def test_shape_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="divide"):
        DitMoeConfig(width=10, depth=1, num_heads=2, num_experts=2)
