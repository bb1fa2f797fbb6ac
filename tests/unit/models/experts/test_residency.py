"""One of several networks on the device: right weights, counted swaps, nothing left half done."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.methods.experts.residency import Residency, mapped
from tests.support.two_experts import EARLY, LATE, network

TOKENS = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


def test_network_has_the_weights_of_who_was_asked_for() -> None:
    alone = {EARLY: network(8, 2, 0), LATE: network(8, 2, 1)}
    residency = Residency(network(8, 2, 9), {name: each.state_dict() for name, each in alone.items()})
    for name in (LATE, LATE, EARLY, LATE):
        run, _ = residency.on_device(name)
        assert torch.equal(run(TOKENS), alone[name](TOKENS))
    assert residency.swaps == 2  # the first time it was brought is none, and the second nothing was


def test_nothing_is_copied_while_the_expert_is_there() -> None:
    states = {name: network(8, 1, name).state_dict() for name in (0, 1)}
    residency = Residency(network(8, 1, 9), states)
    assert residency.on_device(0)[1] > 0.0
    spent_s = residency.seconds
    assert residency.on_device(0)[1] == 0.0
    assert residency.seconds == spent_s


def test_network_keeps_its_memory() -> None:
    skeleton = network(8, 1, 9)
    places = [parameter.data_ptr() for parameter in skeleton.parameters()]
    residency = Residency(skeleton, {name: network(8, 1, name).state_dict() for name in (0, 1)})
    for name in (0, 1):
        residency.on_device(name)
        assert [parameter.data_ptr() for parameter in skeleton.parameters()] == places


def test_copy_that_fails_leaves_nobody_there() -> None:
    states = {name: dict(network(8, 1, name).state_dict()) for name in (0, 1)}
    residency = Residency(network(8, 1, 9), states)
    residency.on_device(0)
    last = list(states[1])[-1]
    whole, states[1][last] = states[1][last], torch.zeros(5)
    with pytest.raises(RuntimeError):
        residency.on_device(1)
    states[1][last] = whole
    run, seconds = residency.on_device(0)
    assert seconds > 0.0
    assert torch.equal(run(TOKENS), network(8, 1, 0)(TOKENS))


def test_weights_stay_in_their_file(tmp_path: Path) -> None:
    save_file(network(8, 1, 3).state_dict(), tmp_path / "expert.safetensors")
    residency = Residency(network(8, 1, 9), {"filed": mapped(tmp_path / "expert.safetensors")})
    assert torch.equal(residency.on_device("filed")[0](TOKENS), network(8, 1, 3)(TOKENS))
    with pytest.raises(ValueError, match="cannot be read"):
        mapped(tmp_path / "nowhere.safetensors")


def test_experts_of_another_architecture_are_refused() -> None:
    with pytest.raises(ValueError, match="missing"):
        Residency(network(8, 2, 9), {"short": network(8, 1, 0).state_dict()})
    with pytest.raises(ValueError, match="no expert"):
        Residency(network(8, 2, 9), {})
