"""What a gateway reads of a video model: its folder, its points, and what is refused before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from models import registry
from models.identity import checkpoint_sha256
from models.io import ClipRequest
from models.operating_points import point_name
from models.registry import find
from schedulers.plan import Load, Plan
from serving.cli.app import build
from serving.config import JobOptions, ModelSettings, ResolvedModel, resolve_model
from serving.domain import Budget, Surface
from serving.errors import ConfigError, PromptTooLong, UnsupportedVideo
from serving.tasks.videos.models import read_served
from serving.tasks.videos.resolve import ClipPlanner, _num_frames
from serving.tasks.videos.rules import VideoRequest
from serving.tasks.videos.schemas import VideoBody
from tests.support import flipbook as flip
from tests.support.clip_limits import clip_limits


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
    clip = model.variant.io.settled(ClipRequest(num_frames=num_frames))
    return planner(model).points.choose(clip, {"sampler": "ddim"}, Budget(), Load())


def test_engine_without_a_model_needs_no_folder_and_offers_every_sampler() -> None:
    model = settings(options={"engine": "fake"})
    served = read_served(model)
    assert tuple(served.card.io.samplers) == tuple(find("vdit-nano")[1].io.samplers)
    assert served.card.operating_points == planner(model).points.names
    assert served.card.checkpoint_sha256 == "0" * 64


def test_prompt_of_too_many_tokens_is_refused_before_a_job_is_queued() -> None:
    body = VideoBody(prompt="red " * 24)
    request = VideoRequest(request_id="r", surface=Surface.HTTP_VIDEO, tenant="t", model="vdit-nano", asked=body)
    with pytest.raises(PromptTooLong, match="25 tokens; limit is 24") as caught:
        planner(settings())(request, 1, Load())
    assert caught.value.param == "prompt"


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


# -- families with other knobs ---------------------------------------------------------------------------------------


@pytest.fixture
def flipbook(monkeypatch: pytest.MonkeyPatch) -> ClipPlanner:
    """A model with a size, a length and settings that vdit does not have."""
    monkeypatch.setattr(registry, "families", lambda: {"flipbook": flip.FAMILY})
    variant = flip.FAMILY.variants[0]
    model: Any = SimpleNamespace(
        id=variant.id, family="flipbook", variant=variant, device="cpu", watts=6.0, replicas=1,
        options=SimpleNamespace(engine="fake"), num_ranks=1,
    )  # fmt: skip
    return planner(model)


def wanted(settings: dict[str, Any] | None = None, **fields: Any) -> VideoRequest:
    return VideoRequest(
        request_id="r", surface=Surface.HTTP_VIDEO, tenant="ada", model=flip.MODEL,
        asked=VideoBody.model_construct(prompt="", **fields), budget=Budget(settings=settings or {}),
    )  # fmt: skip


def test_any_knobs_of_a_family_are_a_point(flipbook: ClipPlanner) -> None:
    made = flipbook(wanted(), 1, Load())
    assert made.point == {"num_inference_steps": 6, "motion": 127, "is_looped": False}
    assert (made.num_steps, made.name, made.shown["variant"]) == (6, point_name(made.point), "flipbook")
    clip = made.request
    assert (clip.width, clip.height, clip.num_frames, clip.fps) == (64, 36, 8, 7)
    own = flipbook(
        wanted({"motion": 10, "is_looped": True}, num_inference_steps=9, width=48, height=48, fps=12), 1, Load()
    )
    assert own.point == {"num_inference_steps": 9, "motion": 10, "is_looped": True}
    assert (own.request.width, own.request.fps, own.output["fps"], own.name) == (48, 12, 12, "custom")
    assert own.predicted_s == pytest.approx(1.5 * made.predicted_s, rel=0.5)


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"width": 64, "height": 64}, "size", "64x36, 36x64, 48x48"),
        ({"num_frames": 41}, "num_frames", "1 to 40"),
        ({"seconds": 60.0}, "seconds", "0.142857 to 5.71429"),
        ({"num_inference_steps": 60}, "num_inference_steps", "2 to 50"),
        ({"num_frames": 3, "settings": {"motion": 201}}, "motion", "3 frames"),
    ],
)
def test_what_such_a_family_cannot_do_is_refused_by_name(
    flipbook: ClipPlanner, fields: dict[str, Any], param: str, says: str
) -> None:
    with pytest.raises(UnsupportedVideo, match=says) as caught:
        flipbook(wanted(**fields), 1, Load())
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("seconds", "fps", "frames"), [(1.0, None, 7), (2.5, 10, 25), (0.2, 7, 1), (5.0, 7, 35), (6.0, 7, 40)]
)
def test_seconds_make_the_nearest_length_of_any(
    flipbook: ClipPlanner, seconds: float, fps: int | None, frames: int
) -> None:
    assert flipbook(wanted(seconds=seconds, fps=fps), 1, Load()).request.num_frames == frames


@pytest.mark.parametrize(("seconds", "frames"), [(1.0, 13), (1.3, 17), (0.01, None), (2.0, 25), (3.5, 37)])
def test_seconds_make_a_length_that_the_autoencoder_has(seconds: float, frames: int | None) -> None:
    limits = clip_limits(frame_counts=(29,), max_frames=40, fps=12)
    asked = VideoBody.model_construct(prompt="", seconds=seconds)
    if frames is None:
        with pytest.raises(UnsupportedVideo, match=r"0\.08\d+ to 3\.08"):
            _num_frames(asked, limits.io, 12)
    else:
        assert _num_frames(asked, limits.io, 12) == frames
