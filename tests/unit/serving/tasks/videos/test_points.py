"""The table of operating points as a file, and what resolving a request gets from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.io import ClipRequest
from schedulers.video_points import ClipCost, VideoPoint
from serving.domain import Budget
from serving.errors import BudgetInfeasible, ConfigError, UnsupportedVideo
from serving.tasks.videos.points import FILE_NAME, VideoPoints, VideoPointTable, load_table, weights_digest, write_table
from serving.tasks.videos.resolve import ChosenPoint
from tests.support.clip_limits import clip_limits

COSTS = (ClipCost(width=64, height=64, num_frames=29, step_s=0.1, fixed_s=0.5),)


def point(name: str, steps: int, quality: float, **options: Any) -> VideoPoint:
    settings = {"variant": "teacher", "sampler": "ddim", "attention": "dense", "guidance_scale": 4.0, **options}
    return VideoPoint(name=name, num_steps=steps, quality=quality, watts=6.0, costs=COSTS, **settings)


STUDENT = point("student-4", 4, 0.5, variant="student", sampler="consistency", guidance_scale=1.0)
POINTS = (point("dense-20", 20, 0.8), STUDENT, point("dense-50", 50, 0.9, sampler="euler_ancestral"))


def chosen(
    points: VideoPoints,
    num_frames: int = 29,
    *,
    allowed_s: float | None = None,
    energy_j: float | None = None,
    quality_floor: float | None = None,
    **fixed: Any,
) -> ChosenPoint:
    clip = ClipRequest(prompt="", num_frames=num_frames)
    return points.choose(clip, fixed, Budget(energy_j=energy_j, quality_floor=quality_floor), allowed_s)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("teacher", "student"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(name.encode())
    return tmp_path


@pytest.fixture
def table(folder: Path) -> VideoPointTable:
    return VideoPointTable(
        model="vdit-nano", weights_sha256=weights_digest(folder), energy_source="estimate", device="cpu", points=POINTS
    )


@pytest.fixture
def points(table: VideoPointTable) -> VideoPoints:
    return VideoPoints(table=table, limits=clip_limits())


# -- the file --------------------------------------------------------------------------------------------------------


def test_table_comes_back_as_it_was_written(folder: Path, table: VideoPointTable) -> None:
    path = write_table(folder, table)
    assert load_table("vdit-nano", folder) == table
    assert json.loads(path.read_text())["points"][0]["costs"][0]["step_s"] == 0.1
    assert [entry.name for entry in folder.iterdir() if entry.is_file()] == [FILE_NAME]  # no draft


def test_tile_mask_of_another_length_is_no_point_of_a_clip_unless_the_caller_wants_it(table: VideoPointTable) -> None:
    tiled = point("tiled", 20, 0.95, attention="tile:3:5")
    points = VideoPoints(table=replace(table, points=(*table.points, tiled)), limits=clip_limits())
    assert chosen(points).name == "tiled"
    assert chosen(points, 93).name == "dense-50"
    assert chosen(points, 93, attention="tile:3:5").point["attention"] == "tile:3:5"


def test_missing_table_names_the_command(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"no operating points.*vireo calibrate vdit-nano"):
        load_table("vdit-nano", folder)


def test_table_of_other_weights_or_of_another_model_is_refused(folder: Path, table: VideoPointTable) -> None:
    write_table(folder, table)
    with pytest.raises(ConfigError, match="of model vdit-nano, not other"):
        load_table("other", folder)
    (folder / "student" / "model.safetensors").write_bytes(b"trained again")
    with pytest.raises(ConfigError, match="other weights"):
        load_table("vdit-nano", folder)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"kind": "classifier"},
        {"points": []},
        {"points": "none"},
        {"model": 3},
    ],
)
def test_damaged_table_is_refused(folder: Path, table: VideoPointTable, change: dict[str, Any]) -> None:
    path = write_table(folder, table)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ConfigError, match="cannot be used"):
        load_table("vdit-nano", folder)


def test_damaged_point_is_refused(folder: Path, table: VideoPointTable) -> None:
    path = write_table(folder, table)
    for field, value in (("quality", 2.0), ("num_steps", 0), ("costs", []), ("name", "dense-20")):
        data = json.loads(json.dumps(json.loads(write_table(folder, table).read_text())))
        data["points"][1][field] = value
        path.write_text(json.dumps(data))
        with pytest.raises(ConfigError, match="cannot be used"):
            load_table("vdit-nano", folder)


def test_folder_without_weights_has_no_digest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no weights"):
        weights_digest(tmp_path)


# -- choosing --------------------------------------------------------------------------------------------------------


def test_names_are_best_first(points: VideoPoints) -> None:
    assert points.names == ("dense-50", "dense-20", "student-4")


def test_point_is_chosen_within_the_budget(points: VideoPoints) -> None:
    best = chosen(points)
    assert best.name == "dense-50"
    assert best.point == {
        "sampler": "euler_ancestral",
        "num_inference_steps": 50,
        "guidance_scale": 4.0,
        "attention": "dense",
    }
    assert (best.predicted_s, best.predicted_j) == (pytest.approx(5.5), pytest.approx(33.0))
    quick = chosen(points, allowed_s=1.0)
    assert (quick.name, quick.point["sampler"], quick.degraded) == ("student-4", "consistency", ("latency",))


def test_callers_own_settings_are_kept_and_named_custom(points: VideoPoints) -> None:
    custom = chosen(points, num_inference_steps=12, attention="ras:0.5")
    assert (custom.name, custom.point["num_inference_steps"], custom.point["attention"]) == ("custom", 12, "ras:0.5")
    assert custom.predicted_s == pytest.approx(1.7)


def test_steps_that_a_sampler_cannot_take_go_to_another(points: VideoPoints) -> None:
    """Five is nearer to the student's four than to twenty, and the student takes multiples of four."""
    assert chosen(points, num_inference_steps=5).point["sampler"] != "consistency"
    assert chosen(points, num_inference_steps=8).point["sampler"] == "consistency"


def test_refusals_say_which_part_of_the_budget(points: VideoPoints) -> None:
    for fixed, param in (
        ({"allowed_s": 0.1}, "vireo.latency_ms"),
        ({"energy_j": 0.1}, "vireo.energy_j"),
        ({"quality_floor": 0.95}, "vireo.quality_floor"),
    ):
        with pytest.raises(BudgetInfeasible, match="nearest") as caught:
            chosen(points, **fixed)
        assert caught.value.param == param


def test_impossible_combination_is_no_matter_of_budget(points: VideoPoints) -> None:
    with pytest.raises(UnsupportedVideo, match="combination"):
        chosen(points, sampler="consistency", num_inference_steps=50)
