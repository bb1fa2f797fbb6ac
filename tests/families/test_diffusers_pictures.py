"""diffusers, pipelines that make pictures: which folder is which, what they refuse, and their rows. All else is
generic."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from models import registry
from models.contract import SettingError, Variant
from models.families.diffusers import pipelines
from models.families.diffusers.family import FAMILY, recognise, resolve
from models.families.diffusers.host import DiffusersRunner
from models.families.diffusers.networks import Components, build, save
from models.families.diffusers.pipelines.stable_diffusion_xl import UNet
from models.io import ImageRequest

pytestmark = pytest.mark.usefixtures("one_thread")
PICTURES = [each.name for each in pipelines.ARCHITECTURES if each.task == "images"]


@cache
def _components(name: str) -> Components:
    return build(resolve(name), random_weights=True)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def written(name: str) -> Path:
        path = tmp_path_factory.mktemp(name) / "folder"
        save(_components(name), resolve(name), path)
        return path

    return written


def _picture(name: str, guidance: float | None, negative_prompt: str = "") -> bytes:
    variant = resolve(name)
    family = FAMILY.of(variant)
    point = family.check_point({"num_inference_steps": 2} | ({} if guidance is None else {"guidance_scale": guidance}))
    width, height = variant.io.size
    request = ImageRequest(width=width, height=height, prompt="a ball", negative_prompt=negative_prompt)
    runner = DiffusersRunner(_components(name), variant)
    state = runner.open(request, point, 1)
    while runner.remaining(state):
        runner.step([state])
    made: bytes = runner.close(state)["image"].tobytes()
    return made


@pytest.mark.parametrize("name", [name for name in PICTURES if resolve(name).io.takes_negative_prompt])
def test_negative_prompt_changes_pictures_with_guidance_alone(name: str) -> None:
    assert _picture(name, 6.0, "a square") != _picture(name, 6.0)
    assert _picture(name, 1.0, "a square") == _picture(name, 1.0)


@pytest.mark.parametrize("name", PICTURES)
def test_negative_prompts_are_of_pipelines_with_guidance(name: str) -> None:
    variant = resolve(name)
    is_guided = any(knob.name == "guidance_scale" and knob.low == 1.0 for knob in variant.knobs)
    assert variant.io.takes_negative_prompt == (is_guided and not name.startswith("flux"))


@pytest.mark.parametrize("name", PICTURES)
def test_folder_says_what_it_is(name: str, folder_of: Callable[[str], Path]) -> None:
    family, variant = registry.find("diffusers:mine", folder_of(name))
    assert recognise(folder_of(name)) == name
    assert (variant.id, variant.config["architecture"], family.tasks) == ("diffusers:mine", name, ("images",))
    assert set(pipelines.named(name).knobs) <= set(family.knobs)


def test_sdxl_beside_which_another_unet_lies_is_left_to_whoever_knows_it(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    copy = _copy(folder_of("sdxl"), tmp_path)
    save_file({"model.diffusion_model.time_embed.0.bias": torch.zeros(1)}, copy / "sd_xl_base_1.0.safetensors")
    assert registry.recognise(copy) == ("diffusers:sdxl",)
    (unet,) = (copy / "unet").glob("*.safetensors")
    shutil.copy(unet, copy / "distilled_unet.safetensors")
    with pytest.raises(ValueError, match=r"distilled_unet.safetensors is a UNet .*NAME=diffusers:NAME@"):
        registry.recognise(copy)
    assert resolve("mine", copy).config["architecture"] == "sdxl", "named, it is served as it is"
    (copy / "distilled_unet.safetensors").rename(copy / "nitrosd-realism_unet.safetensors")
    assert registry.recognise(copy) == ("nitrofusion:realism",)


def test_settings_are_those_of_the_checkpoint() -> None:
    names = ("num_inference_steps", "guidance_scale")
    points = {name: FAMILY.of(resolve(name)).check_point({}) for name in PICTURES}
    usual = {name: {knob: point[knob] for knob in names if knob in point} for name, point in points.items()}
    assert usual["flux-dev"] == {"num_inference_steps": 28, "guidance_scale": 3.5}
    assert usual["flux-schnell"] == {"num_inference_steps": 4}
    assert usual["sdxl-turbo"] == {"num_inference_steps": 1, "guidance_scale": 1.0}
    assert usual["qwen-image"] == {"num_inference_steps": 50, "guidance_scale": 4.0}
    with pytest.raises(SettingError, match="no setting 'guidance_scale'; settings are: num_inference_steps"):
        FAMILY.of(resolve("flux-schnell")).check_point({"guidance_scale": 3.5})
    with pytest.raises(SettingError, match="give a number from 1 to 20"):
        FAMILY.of(resolve("sd3")).check_point({"guidance_scale": 0.5})


@pytest.mark.parametrize(
    ("name", "part", "change", "told"),
    [
        ("flux-dev", "transformer", {"in_channels": 96}, "takes 96 channels; pictures alone have 16"),
        ("flux-dev", "scheduler", {"stochastic_sampling": True}, "stochastic_sampling"),
        ("sdxl", "unet", {"in_channels": 9}, "takes 9 channels; pictures alone have 4"),
        ("sdxl", "unet", {"time_cond_proj_dim": 256}, "time_cond_proj_dim"),
        ("sdxl", "unet", {"addition_embed_type": "text"}, "addition_embed_type is text"),
        ("qwen-image", "transformer", {"guidance_embeds": True}, "guidance_embeds"),
    ],
)
def test_folder_that_cannot_be_run_is_refused_by_name(
    name: str, part: str, change: dict[str, Any], told: str, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    copy = _copy(folder_of(name), tmp_path)
    (path,) = (each for each in (copy / part).glob("*config.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=told):
        resolve(name, copy)


def test_pipeline_that_changes_pictures_is_refused_by_name(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    copy = _copy(folder_of("flux-dev"), tmp_path)
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, "_class_name": "FluxFillPipeline"}))
    with pytest.raises(ValueError, match=r"FluxFillPipeline is not run step by step here; what is: .*FluxPipeline"):
        resolve("mine", copy)


def _copy(folder: Path, target: Path) -> Path:
    copied: Path = shutil.copytree(folder, target / "copy")
    return copied


@pytest.mark.parametrize("name", PICTURES)
def test_request_that_does_not_fit_is_refused_by_field(name: str) -> None:
    variant = resolve(name)
    runner, point = DiffusersRunner(_components(name), variant), FAMILY.of(variant).check_point({})
    with pytest.raises(SettingError, match=r"prompt has \d+ tokens; limit is") as told:
        runner.open(_asked(variant, prompt="ab " * pipelines.named(name).prompted.limit), point, 0)
    assert told.value.name == "prompt"
    with pytest.raises(SettingError, match="this model takes sides of") as told:
        runner.open(ImageRequest(width=33, height=32, prompt="rain"), point, 0)
    assert told.value.name == "size"


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_of_a_request_have_seeds_of_their_own(name: str) -> None:
    """Also where they are not square; the two turned by a quarter share no pass."""
    variant = resolve(name)
    runner = DiffusersRunner(_components(name), variant)
    three = _made(runner, variant, _asked(variant, width=48, count=3), 7)
    assert three.shape == (3, 32, 48, 3)
    for row in (0, 2):
        (alone,) = _made(runner, variant, _asked(variant, width=48), 7 + row)
        assert int((three[row].int() - alone.int()).abs().max()) <= 1
    point = FAMILY.of(variant).check_point({"num_inference_steps": 2})
    wide, tall = (runner.open(_asked(variant, **side), point, 0) for side in ({"width": 48}, {"height": 48}))
    runner.step([wide])
    runner.step([tall])
    assert runner.group_key(wide) != runner.group_key(tall)


def _asked(variant: Variant, **fields: Any) -> ImageRequest:
    width, height = variant.io.size
    return ImageRequest(**{"width": width, "height": height, "prompt": "a red circle", **fields})


def _made(runner: DiffusersRunner, variant: Variant, request: ImageRequest, seed: int) -> torch.Tensor:
    state = runner.open(request, FAMILY.of(variant).check_point({"num_inference_steps": 2}), seed)
    while runner.remaining(state):
        runner.step([state])
    return torch.from_numpy(runner.close(state)["image"])


def test_requests_of_other_steps_and_built_in_guidance_share_a_pass() -> None:
    variant = resolve("flux-dev")
    runner = DiffusersRunner(_components("flux-dev"), variant)
    points = [
        FAMILY.of(variant).check_point({"num_inference_steps": steps, "guidance_scale": scale})
        for steps, scale in ((2, 1.5), (4, 7.0))
    ]
    alone = [_latents(runner, [runner.open(_asked(variant), point, 3)])[0] for point in points]
    together = _latents(runner, [runner.open(_asked(variant), point, 3) for point in points])
    for one, other in zip(alone, together, strict=True):
        assert float((one - other).abs().max()) <= 1e-5
    assert not torch.equal(*alone)


def _latents(runner: DiffusersRunner, states: list[Any]) -> list[torch.Tensor]:
    while left := [state for state in states if "denoise" in runner.remaining(state)]:
        assert len({runner.group_key(state) for state in left}) == 1
        runner.step(left)
    return [state.kept["latents"] for state in states]


@pytest.mark.parametrize("name", ["sdxl", "flux-dev"])
def test_half_precision_leaves_the_autoencoder_of_sdxl_as_it_is(name: str) -> None:
    variant = resolve(name)
    components = build(variant, random_weights=True, dtype="bfloat16")
    kind = torch.float32 if name == "sdxl" else torch.bfloat16
    assert components.networks["vae"].dtype == kind
    assert _made(DiffusersRunner(components, variant), variant, _asked(variant), 0).shape == (1, 32, 32, 3)


def test_work_of_a_unet_is_what_is_counted() -> None:
    config = resolve("sdxl").config["components"]["unet"]
    with torch.device("meta"), FlopCounterMode(display=False) as counted, torch.no_grad():
        conditions = {"text_embeds": torch.zeros(1, 24), "time_ids": torch.zeros(1, 6)}
        unet = UNet2DConditionModel.from_config(dict(config))
        unet(torch.zeros(1, 4, 16, 24), 0, torch.zeros(1, 77, 40), added_cond_kwargs=conditions)
    assert UNet(config).macs(16 * 24) == pytest.approx(counted.get_total_flops() / 2, rel=0.01)
