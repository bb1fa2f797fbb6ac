"""What the checks of all families do not say of DiT-MoE: its published sizes and names, and what training adds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.class_words import IMAGENET, number_of
from models.contract import Experts, SettingError
from models.families.dit_moe.config import NANO, DitMoeConfig
from models.families.dit_moe.family import FAMILY, NANO_CLASSES, check_allowed, expert_facts, work
from models.families.dit_moe.network import DitMoe, Gated, balance_loss
from models.families.dit_moe.networks import build, save
from models.families.dit_moe.oracle import one_by_one
from models.families.dit_moe.runner import DitMoeRunner
from models.io import ImageRequest, knobs_of
from models.registry import find

REQUEST = ImageRequest(width=16, height=16, prompt="a red circle")
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


def test_laid_out_weights_stand_in_for_the_others() -> None:
    """They say the same, are saved as they were, and leave nothing behind."""
    config = replace(TINY, width=128, expert_ratio=4.0)
    network = DitMoe(config).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_(std=0.1)
    inputs = (torch.randn(3, 4, 4, 4), torch.rand(3), torch.tensor([0, 1, config.null_class]))
    before, state, gated = network(*inputs), copy.deepcopy(network.state_dict()), list[Gated]()
    for block in network.blocks:
        block.moe.lay_out()
    with torch.inference_mode():
        torch.testing.assert_close(network(*inputs, None, gated), before, atol=1e-5, rtol=1e-5)
    assert len(gated) == config.depth
    assert not [name for name, _ in network.named_parameters() if "experts" in name]
    assert network.state_dict().keys() == state.keys()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    with pytest.raises(RuntimeError, match="gate_up"):
        network.load_state_dict(state)


def test_small_experts_stay_as_they_are() -> None:
    network = DitMoe(TINY)
    network.blocks[0].moe.lay_out()
    assert network.blocks[0].moe.experts.prepared is None
    assert len(network.blocks[0].moe.experts.gate_up) == TINY.num_experts


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


@pytest.mark.parametrize(
    ("name", "millions", "active", "tensors"),
    [
        ("dit-moe-s-8e2a", 199.3, 71.9, 420),
        ("dit-moe-s-16e2a", 369.2, 71.9, 708),
        ("dit-moe-b-8e2a", 795.9, 286.3, 420),
        ("dit-moe-xl-8e2a", 4168.2, 1492.7, 1076),
        ("dit-moe-g-16e2a", 16503.7, 3181.6, 2492),
    ],
)
def test_published_shapes(name: str, millions: float, active: float, tensors: int) -> None:
    _, variant = find(name)
    config = DitMoeConfig(**variant.config["network"])
    with torch.device("meta"):
        state = DitMoe(config).state_dict()
    facts = expert_facts(variant)
    assert len(state) == tensors
    assert sum(tensor.numel() for tensor in state.values()) == facts.parameters
    assert facts.parameters / 1e6 == pytest.approx(millions, abs=0.05)
    assert facts.active_parameters / 1e6 == pytest.approx(active, abs=0.05)
    layout = "Wqkv" if config.attention == "normed" else "qkv"
    assert state[f"blocks.0.attn.{layout}.weight"].shape == (3 * config.width, config.width)
    assert state["blocks.0.moe.experts.7.gate_proj.weight"].shape == (4 * config.width, config.width)
    assert state["blocks.0.moe.shared_experts.down_proj.weight"].shape == (config.width, 2 * config.width)
    assert state["y_embedder.embedding_table.weight"].shape == (1001, config.width)
    assert state["final_layer.linear.weight"].shape == (32, config.width)


@pytest.mark.parametrize("wrapped", [lambda state: {"ema": state, "model": {}, "opt": {}}, lambda state: state])
def test_published_file_is_read_like_ours(tmp_path: Path, wrapped: Callable[[Any], Any]) -> None:
    variant = FAMILY.miniatures[0]
    networks = build(variant, random_weights=True)
    save(networks, variant, tmp_path / "ours")
    ours = tmp_path / "ours" / "model.safetensors"
    torch.save(wrapped(networks.transformer.state_dict()), tmp_path / "ours" / "dit_moe.pt")
    with pytest.raises(ValueError, match=r"dit_moe\.pt, model\.safetensors"):
        build(variant.with_weights(tmp_path / "ours"))
    ours.unlink()
    for name, tensor in build(variant.with_weights(tmp_path / "ours")).state_dict().items():
        assert torch.equal(tensor, networks.state_dict()[name]), name


def test_weights_of_another_process_are_refused_by_name(tmp_path: Path) -> None:
    ddpm, flow = FAMILY.miniatures
    save(build(ddpm, random_weights=True), ddpm, tmp_path / "ours")
    with pytest.raises(ValueError, match="plain attention; dit-moe-tiny-rectified-flow, which is sampled as rect"):
        build(flow.with_weights(tmp_path / "ours"))
    with pytest.raises(SettingError, match="dit-moe-tiny-ddpm was trained for ddpm"):
        check_allowed(ddpm, REQUEST, FAMILY.check_point({"sampler": "rectified_flow"}))
    check_allowed(ddpm, REQUEST, FAMILY.check_point({"sampler": "ddpm"}))


def test_autoencoder_of_another_scale_is_refused(tmp_path: Path) -> None:
    variant = FAMILY.miniatures[0]
    save(build(variant, random_weights=True), variant, tmp_path / "ours")
    config = tmp_path / "ours" / "vae" / "config.json"
    config.write_text(config.read_text().replace("0.18215", "0.13025"))
    with pytest.raises(ValueError, match=r"scaling_factor is 0\.13025; dit-moe-tiny-ddpm needs 0\.18215"):
        build(variant.with_weights(tmp_path / "ours"))


def test_defaults_are_those_that_a_checkpoint_was_published_with() -> None:
    defaults = {
        name: {k.name: k.default for k in knobs_of(*find(name))} for name in ("dit-moe-s-8e2a", "dit-moe-g-16e2a")
    }
    assert (defaults["dit-moe-s-8e2a"]["num_inference_steps"], defaults["dit-moe-s-8e2a"]["guidance_scale"]) == (250, 4)
    assert (defaults["dit-moe-g-16e2a"]["num_inference_steps"], defaults["dit-moe-g-16e2a"]["guidance_scale"]) == (
        50,
        7,
    )


@pytest.mark.parametrize(
    ("prompt", "number"),
    [
        ("a green 7", 2 * 15 + 7),
        ("green seven", 37),
        ("The digit 7, in green", 37),
        ("red crosses", 13),
        ("Class 37", 37),
    ],
)
def test_words_name_a_class(prompt: str, number: int) -> None:
    assert number_of(NANO_CLASSES, prompt) == number


@pytest.mark.parametrize("prompt", ["a green dog", "green", "a red circle and a blue square", "class 90", "", "7"])
def test_other_words_are_told_what_can_be_asked(prompt: str) -> None:
    with pytest.raises(ValueError, match=r"one of red, orange, .* and one of 0, 1, .* star, such as 'a black star'"):
        number_of(NANO_CLASSES, prompt)


def test_prompts_without_end_take_a_bounded_memory() -> None:
    for number in range(3000):
        assert number_of(NANO_CLASSES, f"{'the ' * (number % 40)}green 7{' of' * (number // 40)}") == 37
    assert number_of.cache_info().currsize <= 1024


def test_classes_of_imagenet_have_their_names() -> None:
    assert number_of(IMAGENET, "a golden retriever") == 207
    assert number_of(IMAGENET, "macaws") == 88
    with pytest.raises(ValueError, match=r"'class 134' .* or 'class 517'"):
        number_of(IMAGENET, "crane")
    with pytest.raises(ValueError, match="such as 'golden retriever'"):
        number_of(IMAGENET, "goldn retriever")


@pytest.mark.parametrize("k0", [1, 2])
def test_loads_are_those_of_each_request(k0: int) -> None:
    variant = FAMILY.miniatures[1]
    runner = DitMoeRunner(build(variant, random_weights=True), variant)
    assert isinstance(runner, Experts)
    layers, experts = runner.expert_shape
    point = FAMILY.check_point({"num_inference_steps": 2, "k0": k0})
    states = [runner.open(replace(REQUEST, count=count), point, 0) for count in (2, 1)]
    runner.step(states)
    loads = runner.take_loads()
    assert [load.shape for load in loads] == [(layers, experts)] * 2
    tokens = variant.config["network"]["latent_side"] ** 2 // 4
    assert [load.sum(1).tolist() for load in loads] == [[rows * 2 * tokens * k0] * layers for rows in (2, 1)]
    assert not runner.take_loads()
    runner.step(states[1:])
    alone = runner.take_loads()[0]
    again = [runner.open(replace(REQUEST, count=1), point, 0)]
    runner.step(again)
    runner.step(again)
    assert (alone == runner.take_loads()[0]).all()


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_declared_multiplications_are_those_of_a_run(guidance: float) -> None:
    variant = FAMILY.miniatures[0]
    networks = build(variant, random_weights=True)
    for block in networks.transformer.blocks:
        block.moe.experts.forward = partial(one_by_one, block.moe.experts)
    runner, counter = DitMoeRunner(networks, variant), FlopCounterMode(display=False)
    point = FAMILY.check_point({"num_inference_steps": 2, "guidance_scale": guidance})
    state = runner.open(replace(REQUEST, count=3), point, 0)
    with sdpa_kernel(SDPBackend.MATH), counter:
        runner.step([state])
    declared = work(variant, state.request, point).units["macs"] / 2
    assert counter.get_total_flops() / 2 == pytest.approx(declared, rel=0.001)
