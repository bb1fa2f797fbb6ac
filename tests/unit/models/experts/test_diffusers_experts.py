"""One kernel runs the experts of diffusers' HiDream and NucleusMoE with their weights."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.transformers.transformer_hidream_image import MOEFeedForwardSwiGLU
from diffusers.models.transformers.transformer_nucleusmoe_image import NucleusMoELayer
from torch import Tensor
from torch.nn import functional as F

from models.methods.experts import fused
from models.methods.experts.gates import expert_choice, softmax_top_k
from models.methods.experts.grouped import dispatched_swiglu, grouped_swiglu


@pytest.fixture(params=[False, True], ids=["grouped", "fused"], autouse=True)
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param:
        monkeypatch.setattr(fused, "_MIN_WEIGHTS", 0)


@torch.no_grad()
def test_hidream() -> None:
    torch.manual_seed(0)
    theirs = MOEFeedForwardSwiGLU(32, 48, num_routed_experts=4, num_activated_experts=2).eval()
    x = torch.randn(2, 17, 32)

    def packed(one: object) -> tuple[Tensor, Tensor]:
        return torch.cat([one.w1.weight, one.w3.weight]), one.w2.weight  # type: ignore[attr-defined]

    gate_up, down = (torch.stack(parts) for parts in zip(*map(packed, theirs.experts), strict=True))
    rows = x.flatten(0, 1)
    routing = softmax_top_k(F.linear(rows, theirs.gate.weight), 2)
    ours = grouped_swiglu(rows, gate_up, down, *routing, shared=packed(theirs.shared_experts))
    torch.testing.assert_close(ours.view_as(x), theirs(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("capacity_factor", [0.5, 2.0, 8.0])
@torch.no_grad()
def test_nucleus(capacity_factor: float) -> None:
    torch.manual_seed(0)
    theirs = NucleusMoELayer(32, 48, 8, capacity_factor, use_sigmoid=False, route_scale=2.5).eval()
    for weight in theirs.experts.parameters():
        weight.normal_(std=0.2)
    x, unmodulated, time = torch.randn(2, 17, 32), torch.randn(2, 17, 32), torch.randn(2, 32)

    logits = theirs.gate(torch.cat([time.unsqueeze(1).expand(-1, 17, -1), unmodulated], dim=-1))
    dispatch = expert_choice(logits.softmax(dim=-1), capacity_factor, scale=2.5)
    gate_up, down = (weight.transpose(1, 2) for weight in (theirs.experts.gate_up_proj, theirs.experts.down_proj))
    up, gate = theirs.shared_expert.net[0].proj.weight.chunk(2)
    shared = (torch.cat([gate, up]), theirs.shared_expert.net[2].weight)
    ours = dispatched_swiglu(x.flatten(0, 1), gate_up, down, dispatch, shared)
    torch.testing.assert_close(ours.view_as(x), theirs(x, unmodulated, time), atol=1e-5, rtol=1e-5)
