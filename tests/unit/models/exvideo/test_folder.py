from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from models import registry
from models.contract import SettingError, Variant
from models.families.exvideo.family import FAMILY, check_allowed, example
from models.families.exvideo.folder import CONTRAST_KEY, recognise, resolve
from models.families.exvideo.networks import build, convert, save
from models.families.exvideo.overlay import names, overlay_of, read_overlay
from models.families.exvideo.runner import ExVideoRunner
from models.families.exvideo.schedule import first_step, karras_sigmas
from models.families.exvideo.shapes import overlay_blocks
from models.families.exvideo.unet import extend
from models.families.exvideo.work import work
from models.io import ClipRequest
from tests.support import hostile

PLAIN, EXTENDED = FAMILY.miniatures
INDICES = [7, 17, 29, 39, 51, 61, 83, 113, 123, 133, 144, 154, 164, 175, 185, 195]


def _quiet(what: str, done: int, total: int) -> None:
    pass


def variant_of(name: str) -> Variant:
    return next(variant for variant in FAMILY.variants if variant.id == name)


def folder_of(variant: Variant, folder: Path) -> Path:
    save(build(variant, random_weights=True), variant, folder)
    return folder


def meta_unet(variant: Variant) -> UNetSpatioTemporalConditionModel:
    with torch.device("meta"):
        unet = UNetSpatioTemporalConditionModel.from_config(variant.config["unet"])
        return extend(unet, variant.config["positions"]) if variant.config["positions"] else unet


def test_published_networks_have_the_published_sizes() -> None:
    plain = meta_unet(variant_of("svd-xt"))
    assert sum(parameter.numel() for parameter in plain.parameters()) == 1_524_623_082
    extended = meta_unet(variant_of("exvideo-svd-128f"))
    state, published = extended.state_dict(), names(extended)
    assert len(published) == 16 * 33
    assert sum(state[ours].numel() for ours in published.values()) == 832_956_800
    assert list(overlay_blocks(extended.config).values()) == INDICES
    assert "blocks.83.positional_embedding.embeddings" in published
    assert published["blocks.195.attn2.to_out.weight"].startswith("up_blocks.3.attentions.2.temporal")


def shuffled(tensors: dict[str, torch.Tensor]) -> None:
    tensors["blocks.6.norm1.weight"] = tensors.pop("blocks.7.norm1.weight")


def short(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["blocks.7.positional_conv.bias"]


def of_other_length(tensors: dict[str, torch.Tensor]) -> None:
    tensors["blocks.7.positional_embedding.embeddings"] = torch.zeros(9, 32)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shuffled, r"misses blocks\.7\.norm1\.weight"),
        (short, "positional_conv.bias"),
        (of_other_length, "other shapes"),
    ],
)
def test_overlay_that_is_not_whole_is_refused_by_name(
    tmp_path: Path, spoil: Callable[[dict[str, torch.Tensor]], None], message: str
) -> None:
    unet = build(EXTENDED, random_weights=True).unet
    tensors = overlay_of(unet)
    save_file(tensors, tmp_path / "whole.safetensors")
    read = read_overlay(tmp_path / "whole.safetensors", unet)
    assert all(torch.equal(tensor, unet.state_dict()[name]) for name, tensor in read.items())
    spoil(tensors)
    save_file(tensors, tmp_path / "spoilt.safetensors")
    with pytest.raises(ValueError, match=message):
        read_overlay(tmp_path / "spoilt.safetensors", unet)


def test_folder_is_recognised_and_says_what_it_holds(tmp_path: Path) -> None:
    folder = folder_of(EXTENDED, tmp_path / "clip-model")
    assert recognise(folder) == "svd"
    assert registry.recognise(folder) == ("exvideo:svd",)  # though diffusers, which knows the index, refuses it
    variant = resolve("svd", folder)
    assert (variant.io.frame_counts, variant.io.max_frames, variant.io.vae_stride) == ((10,), 10, (1, 2, 2))
    assert (variant.config["positions"], tuple(variant.config["analytic_init"])) == (10, (10, 4, 8, 8))
    assert not variant.source.is_open
    (folder / "exvideo.safetensors").unlink()
    plain = resolve("svd", folder)
    assert (plain.config["positions"], plain.io.frame_counts) == (0, (5,))
    assert recognise(tmp_path) is None


def test_whatever_its_files_say_a_folder_is_read_or_refused(tmp_path: Path) -> None:
    folder = folder_of(EXTENDED, tmp_path / "clip-model")
    files = sorted(path for path in folder.rglob("*.json") if path.name.endswith(("index.json", "config.json")))
    refusals: dict[str, str] = {}
    for said in hostile.spoilt(files):
        try:
            registry.find("mine", folder)
        except ValueError as error:
            refusals[said] = str(error)
    assert len(refusals) > 50
    assert all(refusals.values())
    assert registry.find("mine", folder)[1].weights == folder


@pytest.mark.parametrize(("low", "high"), [(0.0, 700.0), (700.0, 0.002), (-1.0, 1.0), (2, 2)])
def test_noise_levels_that_do_not_fall_are_refused(tmp_path: Path, low: float, high: float) -> None:
    folder = folder_of(PLAIN, tmp_path / "clip-model")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sigma_min": low, "sigma_max": high}))
    with pytest.raises(ValueError, match=f"sigma_min is {low} and sigma_max {high}"):
        resolve("svd", folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [("trCov_d", math.nan), ("trCov_d", math.inf), ("trCov_d", -1.0), ("Expectation_x_0", math.nan)],
)
def test_statistics_that_are_no_numbers_are_refused(tmp_path: Path, name: str, value: float) -> None:
    folder = folder_of(EXTENDED, tmp_path / "clip-model")
    path = folder / "analytic_init.safetensors"
    tensors = load_file(path)
    tensors[name] = torch.full_like(tensors[name], value)
    save_file(tensors, path)
    with pytest.raises(ValueError, match="trCov_d is"):
        build(resolve("svd", folder))


@pytest.mark.parametrize("part", ["unet", "vae", "image_encoder"])
def test_pickles_and_missing_weights_are_refused_before_anything_is_built(tmp_path: Path, part: str) -> None:
    folder = folder_of(PLAIN, tmp_path / "clip-model")
    (weights,) = (folder / part).glob("*.safetensors")
    pickle = weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match=r"\.bin is a pickle, which may run code"):
        registry.find("mine", folder)
    pickle.unlink()
    with pytest.raises(ValueError, match=f"{part} has no weights"):
        registry.find("mine", folder)


def test_copy_of_the_nano_is_not_sharpened_as_published_overlays_are(tmp_path: Path) -> None:
    nano, copy = variant_of("exvideo-nano"), tmp_path / "mine"
    assert nano.weights is not None
    shutil.copytree(nano.weights, copy)
    _, variant = registry.find("mine", copy)
    assert (variant.config["positions"], variant.config["contrast"]) == (40, nano.config["contrast"])
    index = json.loads((copy / "model_index.json").read_text())
    published = {name: value for name, value in index.items() if name != CONTRAST_KEY}
    (copy / "model_index.json").write_text(json.dumps(published))
    assert resolve("svd", copy).config["contrast"] == variant_of("exvideo-svd-128f").config["contrast"] == 1.2
    (copy / "model_index.json").write_text(json.dumps({**published, CONTRAST_KEY: "high"}))
    with pytest.raises(ValueError, match="_vireo_contrast is 'high'; give a number"):
        resolve("svd", copy)


def test_what_is_saved_says_its_contrast(tmp_path: Path) -> None:
    variant = replace(EXTENDED, config=MappingProxyType({**EXTENDED.config, "contrast": 0.5}))
    assert resolve("svd", folder_of(variant, tmp_path)).config["contrast"] == 0.5


def test_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no model_index\.json"):
        resolve("svd", tmp_path)
    (tmp_path / "svd_xt.safetensors").touch()
    with pytest.raises(ValueError, match=r"holds svd_xt\.safetensors, which is SVD in one file"):
        resolve("svd", tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(ValueError, match="is of FluxPipeline"):
        resolve("svd", tmp_path)
    with pytest.raises(ValueError, match="give one"):
        resolve("svd", None)


def test_published_file_is_laid_over_a_folder(tmp_path: Path) -> None:
    base = folder_of(PLAIN, tmp_path / "svd")
    unet = build(EXTENDED, random_weights=True).unet
    save_file(overlay_of(unet), tmp_path / "model.fp16.safetensors")
    lines = convert(EXTENDED, base, tmp_path / "model.fp16.safetensors", on_progress=_quiet)
    assert str(base / "exvideo.safetensors") in lines[0]
    assert resolve("svd", base).config["contrast"] == 1.2
    made = build(resolve("svd", base)).unet.state_dict()
    assert all(torch.equal(made[ours], unet.state_dict()[ours]) for ours in names(unet).values())
    with pytest.raises(ValueError, match="served as it is published"):
        convert(PLAIN, base, tmp_path / "model.fp16.safetensors", on_progress=_quiet)
    path = base / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if name != "conv_in.bias"}, path)
    with pytest.raises(ValueError, match=r"conv_in\.bias"):
        convert(EXTENDED, base, tmp_path / "model.fp16.safetensors", on_progress=_quiet)


def test_late_start_leaves_out_the_first_steps() -> None:
    sigmas = karras_sigmas(50, 0.002, 700.0)
    assert sigmas[0] == pytest.approx(700.0)
    assert sigmas[-1] == pytest.approx(0.002)
    point = FAMILY.check_point({"num_inference_steps": 50, "start_sigma": 100.0})
    first = first_step(EXTENDED, point)
    assert sigmas[first] <= 100.0 < sigmas[first - 1]
    assert first_step(EXTENDED, FAMILY.check_point({"num_inference_steps": 50})) == 0


@pytest.mark.parametrize(
    ("variant", "settings", "frames", "name"),
    [
        (PLAIN, {}, 6, "num_frames"),
        (PLAIN, {}, 1, "num_frames"),
        (PLAIN, {"window": 6}, 8, "window"),
        (PLAIN, {"start_sigma": 100.0}, 5, "start_sigma"),
        (EXTENDED, {}, 11, "num_frames"),
    ],
)
def test_what_a_checkpoint_was_not_made_for_is_refused(
    variant: Variant, settings: dict[str, float], frames: int, name: str
) -> None:
    with pytest.raises(SettingError) as caught:
        check_allowed(variant, ClipRequest(num_frames=frames), FAMILY.check_point(settings))
    assert caught.value.name == name


@pytest.mark.parametrize("picture", [b"", b"no picture", example(EXTENDED, np.random.default_rng(0)).picture])
def test_first_frame_that_does_not_fit_is_refused(picture: bytes) -> None:
    runner = ExVideoRunner(build(PLAIN, random_weights=True), PLAIN)
    with pytest.raises(SettingError) as caught:
        runner.open(ClipRequest(picture=picture, width=32, height=16), FAMILY.check_point({}), 0)
    assert caught.value.name == "picture"


def test_longer_clips_are_made_in_windows() -> None:
    runner = ExVideoRunner(build(PLAIN, random_weights=True), PLAIN)
    request = ClipRequest(picture=example(PLAIN, np.random.default_rng(0)).picture, num_frames=9)
    state = runner.open(request, FAMILY.check_point({"num_inference_steps": 2, "window": 5}), 0)
    while runner.remaining(state):
        runner.step([state])
    assert runner.close(state)["frames"].shape == (9, 16, 16, 3)


@pytest.mark.parametrize("variant", [PLAIN, EXTENDED], ids=lambda variant: str(variant.id))
def test_multiplications_are_those_that_are_counted(variant: Variant) -> None:
    point = FAMILY.check_point({"num_inference_steps": 1})
    request = example(variant, np.random.default_rng(0))
    runner = ExVideoRunner(build(variant, random_weights=True), variant)
    state = runner.open(request, point, 0)
    runner.step([state])
    with FlopCounterMode(display=False) as counter:
        runner.step([state])
    assert counter.get_total_flops() / 2 == pytest.approx(work(variant, request, point).units["macs"], rel=0.05)
