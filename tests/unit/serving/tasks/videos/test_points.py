"""What a clip gets from the operating points of its model."""

from __future__ import annotations

from typing import Any

import pytest

from models.io import ClipRequest
from schedulers.plan import Load, Plan, Point
from serving.domain import Budget
from serving.errors import BudgetInfeasible, UnsupportedVideo
from serving.tasks.videos.points import VideoPoints
from tests.support.clip_limits import clip_limits, clip_point

BEST = clip_point(50, 0.9, fixed_s=0.5, sampler="euler_ancestral")
DENSE = clip_point(20, 0.8, fixed_s=0.5)
STUDENT = clip_point(4, 0.5, fixed_s=0.5, sampler="consistency", guidance_scale=1.0)


def points(*more: Point) -> VideoPoints:
    return VideoPoints(points=(*more, BEST, DENSE, STUDENT), limits=clip_limits())


def chosen(
    points: VideoPoints,
    num_frames: int = 29,
    *,
    allowed_s: float | None = None,
    energy_j: float | None = None,
    quality_floor: float | None = None,
    **fixed: Any,
) -> Plan:
    clip = clip_limits().io.settled(ClipRequest(num_frames=num_frames))
    latency_ms = None if allowed_s is None else 1e3 * allowed_s
    budget = Budget(latency_ms=latency_ms, energy_j=energy_j, quality_floor=quality_floor)
    return points.choose(clip, fixed, budget, Load())


def test_tile_mask_of_another_length_is_no_point_of_a_clip() -> None:
    tiled = clip_point(20, 0.95, attention="tile:3:5")
    table = points(tiled)
    assert chosen(table).point.name == tiled.name
    assert chosen(table, 93).point.name == BEST.name
    with pytest.raises(UnsupportedVideo, match="combination"):
        chosen(table, 93, attention="tile:3:5")


def test_names_are_best_first() -> None:
    assert points().names == (BEST.name, DENSE.name, STUDENT.name)


def test_point_is_chosen_within_the_budget() -> None:
    best = chosen(points())
    assert (best.point.name, best.point.settings) == (BEST.name, BEST.settings)
    assert (best.busy_s, best.energy_j) == (pytest.approx(5.5), pytest.approx(33.0))
    quick = chosen(points(), allowed_s=1.0)
    assert (quick.point.name, quick.point.settings["sampler"], quick.degraded) == (
        STUDENT.name,
        "consistency",
        ("latency",),
    )


def test_callers_own_settings_are_kept_and_named_custom() -> None:
    made = chosen(points(), num_inference_steps=12, attention="ras:0.5")
    assert (points().name_of(made), made.point.settings["num_inference_steps"], made.point.settings["attention"]) == (
        "custom",
        12,
        "ras:0.5",
    )
    assert made.busy_s == pytest.approx(1.7)


def test_steps_that_a_sampler_cannot_take_go_to_another() -> None:
    """Five is nearer to the student's four than to twenty, and the student takes multiples of four."""
    assert chosen(points(), num_inference_steps=5).point.settings["sampler"] != "consistency"
    assert chosen(points(), num_inference_steps=8).point.settings["sampler"] == "consistency"


def test_refusals_say_which_part_of_the_budget() -> None:
    for fixed, param in (
        ({"allowed_s": 0.1}, "vireo.latency_ms"),
        ({"energy_j": 0.1}, "vireo.energy_j"),
        ({"quality_floor": 0.95}, "vireo.quality_floor"),
    ):
        with pytest.raises(BudgetInfeasible, match="nearest") as caught:
            chosen(points(), **fixed)
        assert caught.value.param == param


def test_impossible_combination_is_no_matter_of_budget() -> None:
    with pytest.raises(UnsupportedVideo, match="combination"):
        chosen(points(), sampler="consistency", num_inference_steps=50)
