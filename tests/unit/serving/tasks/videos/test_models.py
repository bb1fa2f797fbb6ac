"""What a gateway reads of a video model: its folder, its points, and what is refused before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from models.identity import checkpoint_sha256
from models.io import ClipRequest
from models.registry import find
from schedulers.plan import Load, Plan
from serving.cli.app import build
from serving.config import JobOptions, ModelSettings, ResolvedModel, resolve_model
from serving.domain import Budget
from serving.errors import ConfigError
from serving.tasks.videos.models import read_served
from serving.tasks.videos.resolve import ClipPlanner


def settings(folder: Path | None = None, **more: Any) -> ResolvedModel[JobOptions]:
    written = {"id": "vdit-nano", "device": "cpu", "checkpoint_dir": folder, "options": {"engine": "torch"}}
    return resolve_model(ModelSettings(**{**written, **more}))


def folder_with(tmp_path: Path, *networks: str, name: str = "diffusion_pytorch_model.safetensors") -> Path:
    for network in networks:
        (tmp_path / network).mkdir()
        (tmp_path / network / name).write_bytes(network.encode())
    return tmp_path


def planner(model: ResolvedModel[JobOptions]) -> ClipPlanner:
    made = read_served(model).plan
    assert isinstance(made, ClipPlanner)
    return made


def chosen(model: ResolvedModel[JobOptions], num_frames: int = 29) -> Plan:
    clip = ClipRequest(prompt="", num_frames=num_frames)
    return planner(model).points.choose(clip, {"sampler": "ddim"}, Budget(), Load())


def test_engine_without_a_model_needs_no_folder_and_offers_every_sampler() -> None:
    model = settings(options={"engine": "fake"})
    served = read_served(model)
    assert tuple(served.card.io.samplers) == tuple(find("vdit-nano")[1].io.samplers)
    assert served.card.operating_points == planner(model).points.names
    assert served.card.checkpoint_sha256 == "0" * 64


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_checkpoint_that_nobody_measured_is_served_at_a_reckoned_cost(tmp_path: Path, suffix: str) -> None:
    folder = folder_with(tmp_path, "teacher", "vae", name=f"diffusion_pytorch_model.{suffix}")
    model = settings(folder, watts=10.0)
    served = read_served(model)
    assert served.card.checkpoint_sha256 == checkpoint_sha256(folder)
    assert list(served.card.io.samplers) == ["ddim", "euler_ancestral"]
    assert not served.card.is_calibrated
    point = chosen(model)
    assert point.point.settings["num_inference_steps"] == 20
    assert point.energy_j == pytest.approx(10.0 * point.busy_s)


def test_sampler_of_a_variant_is_offered_once_its_weights_are_there(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "teacher", "vae", "student")
    assert "consistency" in read_served(settings(folder)).card.io.samplers


def test_reckoned_cost_grows_with_the_clip_and_shrinks_with_the_device() -> None:
    large = [
        chosen(settings(id=name, options={"engine": "fake"}, device=device), frames)
        for name, frames, device in (
            ("vdit-osp-29x720p", 29, "cuda"),
            ("vdit-osp-93x720p", 93, "cuda"),
            ("vdit-osp-93x720p", 93, "cpu"),
        )
    ]
    assert large[0].busy_s < large[1].busy_s < large[2].busy_s


@pytest.mark.parametrize("networks", [(), ("teacher",)])
def test_folder_without_an_autoencoder_is_refused_with_a_remedy(tmp_path: Path, networks: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"has no weights here.*: set its checkpoint_dir"):
        read_served(settings(folder_with(tmp_path, *networks)))


def test_folder_of_empty_folders_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    with pytest.raises(ConfigError, match="no weights at"):
        read_served(settings(tmp_path))


def test_points_of_other_weights_are_refused(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "teacher", "vae")
    (folder / "operating_points.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be used"):
        read_served(settings(folder))


def test_command_line_lists_and_shows_video_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    app = build()
    listed = CliRunner().invoke(app, ["models", "list"])
    assert listed.exit_code == 0, listed.output
    shown = CliRunner().invoke(app, ["models", "show", "vdit-osp-93x720p"])
    assert "86,400 tokens" in shown.output
    facts = json.loads(CliRunner().invoke(app, ["models", "show", "vdit-nano", "--json"]).output)
    assert facts["samplers"]["consistency"] == {
        "weights": "student", "min_steps": 4, "max_steps": 8, "default_steps": 4, "multiple": 4,
        "is_guided": False,
    }  # fmt: skip
