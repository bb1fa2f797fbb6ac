"""switch-dit: published sizes, files of the official training, and experts by timestep. All else is generic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from models.contract import ExpertPhases, JobState, SettingError, check_licence
from models.families.switch_dit.config import SwitchDitConfig
from models.families.switch_dit.family import FAMILY, check_allowed
from models.families.switch_dit.network import SwitchDit
from models.families.switch_dit.networks import Networks, build, save
from models.families.switch_dit.runner import SwitchDitRunner
from models.io import ImageRequest
from models.registry import find

(TINY,) = FAMILY.miniatures


@pytest.fixture(scope="module")
def networks() -> Networks:
    return build(TINY, random_weights=True)


def opened(runner: SwitchDitRunner, step: int, *, prompt: str = "red circle", guidance: float = 1.5) -> JobState:
    request = ImageRequest(width=16, height=16, prompt=prompt)
    state = runner.open(request, {"num_inference_steps": 50, "guidance_scale": guidance}, 1)
    state.kept = {**state.kept, "step": step}
    return state


@pytest.mark.parametrize(
    ("name", "parameters", "of_experts", "tensors"),
    [
        ("switch-dit-s", 38_299_460, 5_336_100, 180),
        ("switch-dit-b", 151_801_412, 21_288_996, 180),
        ("switch-dit-l", 533_747_816, 75_645_000, 348),
        ("switch-dit-xl", 786_799_988, 111_670_356, 404),
    ],
)
def test_published_sizes(name: str, parameters: int, of_experts: int, tensors: int) -> None:
    _, variant = find(name)
    with torch.device("meta"):
        network = SwitchDit(SwitchDitConfig(**variant.config["network"]))
    assert sum(each.numel() for each in network.parameters()) == parameters
    assert sum(each.numel() for each in network.routers.parameters()) == of_experts
    assert len(network.state_dict()) == tensors
    width = variant.config["network"]["width"]
    assert network.state_dict()["routers.0.experts.w"].shape == (3, width, width)
    with pytest.raises(ValueError, match="licence 'none'"):
        check_licence(variant, is_accepted=False)


def test_curve_is_pinned_for_each_variant() -> None:
    curves = {variant.id: variant.config["network"]["curve"] for variant in FAMILY.variants}
    assert curves["switch-dit-xl"] == "cosine"
    assert curves["switch-dit-xl-linear"] == "linear"
    with pytest.raises(ValueError, match="choose cosine or linear"):
        SwitchDitConfig(width=32, depth=1, num_heads=2, curve="quadratic")  # type: ignore[arg-type]


def test_file_of_the_official_training_is_read(networks: Networks, tmp_path: Path) -> None:
    """Averaged weights, with what only training needs beside them; anything else is refused."""
    folder = tmp_path / "weights"
    save(networks, TINY, folder)
    (folder / "model.safetensors").unlink()
    averaged: dict[str, Any] = dict(networks.transformer.state_dict())
    averaged |= {"full_time": torch.arange(1000), "prior._unit_mapping": torch.zeros(1000, 6)}
    last = {name: torch.zeros_like(tensor) for name, tensor in averaged.items()}
    torch.save({"model": last, "ema": averaged, "opt": {}}, folder / "0400000.pt")
    read = build(TINY.with_weights(folder)).transformer
    for name, tensor in networks.transformer.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor), name
    torch.save({"ema": {**averaged, "routers.0.more": torch.zeros(1)}}, folder / "0400000.pt")
    with pytest.raises(ValueError, match=r"routers\.0\.more"):
        build(TINY.with_weights(folder))


def test_requests_at_different_timesteps_share_a_step(networks: Networks) -> None:
    runner = SwitchDitRunner(networks, TINY)
    assert isinstance(runner, ExpertPhases)
    places = {"red circle": 3, "blue square": 40, "blue circle": 3}
    alone = [opened(runner, step, prompt=prompt) for prompt, step in places.items()]
    together = [opened(runner, step, prompt=prompt) for prompt, step in places.items()]
    assert len({runner.group_key(state) for state in together}) == 1
    assert runner.group_key(opened(runner, 3, guidance=1.0)) != runner.group_key(together[0])
    runner.step(together)
    for state in alone:
        runner.step([state])
    for one, other in zip(alone, together, strict=True):
        assert torch.allclose(one.kept["latents"], other.kept["latents"], atol=1e-5)


def test_phase_is_of_the_experts_that_the_timestep_takes(networks: Networks) -> None:
    runner = SwitchDitRunner(networks, TINY)
    gates = networks.transformer.gates > 0
    assert (gates.sum(-1) == 2).all()
    timesteps = [runner._timestep(opened(runner, step)) for step in range(50)]
    phases = [runner.expert_phase(opened(runner, step)) for step in range(50)]
    assert len(set(phases)) > 1
    for one, phase in zip(timesteps, phases, strict=True):
        for other, another in zip(timesteps, phases, strict=True):
            assert (phase == another) == torch.equal(gates[:, one], gates[:, other])


def test_only_its_classes_and_size_are_taken() -> None:
    point = FAMILY.check_point({})
    check_allowed(TINY, ImageRequest(width=16, height=16, prompt="a blue square"), point)
    with pytest.raises(SettingError, match="names no class"):
        check_allowed(TINY, ImageRequest(width=16, height=16, prompt="a storm"), point)
    with pytest.raises(SettingError, match="size"):
        check_allowed(TINY, ImageRequest(width=24, height=16, prompt="a blue square"), point)
