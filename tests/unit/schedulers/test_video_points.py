"""Which operating point a clip gets: budgets, what the caller fixed, and what is said when nothing fits."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedulers.video_points import Clip, ClipCost, NearestMiss, PointChoice, VideoBudget, VideoPoint, choose

SMALL = Clip(width=64, height=64, num_frames=29)


def cost(step_s: float, fixed_s: float = 1.0, num_frames: int = 29) -> ClipCost:
    return ClipCost(width=64, height=64, num_frames=num_frames, step_s=step_s, fixed_s=fixed_s)


def point(name: str, steps: int, quality: float, step_s: float = 0.1, **options: Any) -> VideoPoint:
    settings = {
        "variant": "teacher",
        "sampler": "ddim",
        "attention": "dense",
        "guidance_scale": 4.0,
        "watts": 10.0,
        "costs": (cost(step_s),),
        **options,
    }
    return VideoPoint(name=name, num_steps=steps, quality=quality, **settings)


BEST = point("best", 50, 0.9)
TILE = point("tile", 50, 0.8, 0.06, attention="tile:2:6")
QUICK = point("quick", 20, 0.7)
STUDENT = point("student", 4, 0.6, 0.05, variant="student", sampler="consistency", guidance_scale=1.0)
POINTS = (STUDENT, QUICK, TILE, BEST)


def chosen(clip: Clip = SMALL, **budget: float) -> PointChoice:
    choice = choose(POINTS, clip, VideoBudget(**budget))
    assert isinstance(choice, PointChoice)
    return choice


def missed(clip: Clip = SMALL, **budget: float) -> NearestMiss:
    choice = choose(POINTS, clip, VideoBudget(**budget))
    assert isinstance(choice, NearestMiss)
    return choice


# -- budgets ---------------------------------------------------------------------------------------------------------


def test_best_point_without_a_budget() -> None:
    choice = chosen()
    assert (choice.point, choice.degraded, choice.is_measured) == (BEST, (), True)
    assert (choice.predicted_s, choice.predicted_j) == (pytest.approx(6.0), pytest.approx(60.0))


@pytest.mark.parametrize(
    ("budget", "name", "degraded"),
    [
        ({"latency_s": 6.0}, "best", ()),
        ({"latency_s": 5.9}, "tile", ("latency",)),
        ({"energy_j": 39.0}, "quick", ("energy",)),
        ({"latency_s": 3.5, "energy_j": 20.0}, "student", ("latency", "energy")),
        ({"latency_s": 4.5, "quality_floor": 0.8}, "tile", ("latency",)),
    ],
)
def test_best_point_that_fits(budget: dict[str, float], name: str, degraded: tuple[str, ...]) -> None:
    choice = chosen(**budget)
    assert (choice.point.name, choice.degraded) == (name, degraded)


def test_waiting_counts_as_latency() -> None:
    choice = choose(POINTS, SMALL, VideoBudget(latency_s=6.0), wait_s=2.0)
    assert isinstance(choice, PointChoice)
    assert choice.point is TILE
    for wait_s in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="wait_s"):
            choose(POINTS, SMALL, VideoBudget(), wait_s=wait_s)


def test_miss_names_the_nearest_and_what_it_breaks() -> None:
    miss = missed(latency_s=1.0)
    assert miss.nearest is not None
    assert (miss.nearest.point, miss.breaks) == (STUDENT, ("latency",))
    assert "student, breaks latency 1200 ms of 1000 ms" in miss.message
    miss = missed(quality_floor=0.95)
    assert miss.nearest is not None
    assert (miss.nearest.point, miss.breaks) == (BEST, ("quality",))
    assert missed(latency_s=0.0).breaks == ("latency",)


@given(
    st.lists(st.tuples(st.integers(1, 60), st.floats(0, 1), st.floats(0.01, 1)), min_size=1, max_size=6),
    *(st.one_of(st.none(), st.floats(0, bound)) for bound in (40, 400, 1)),
)
def test_nothing_better_would_have_fitted(
    drawn: list[tuple[int, float, float]], latency_s: float | None, energy_j: float | None, floor: float | None
) -> None:
    points = [point(f"p{i}", steps, quality, step_s) for i, (steps, quality, step_s) in enumerate(drawn)]
    size = (SMALL.width, SMALL.height, SMALL.num_frames)
    fitting = [
        one
        for one in points
        if (latency_s is None or one.seconds(*size) <= latency_s)
        and (energy_j is None or one.joules(*size) <= energy_j)
        and (floor is None or one.quality >= floor)
    ]
    choice = choose(points, SMALL, VideoBudget(latency_s=latency_s, energy_j=energy_j, quality_floor=floor))
    assert isinstance(choice, PointChoice) == bool(fitting)
    if isinstance(choice, PointChoice):
        assert choice.point.quality == max(one.quality for one in fitting)
        assert choice.point in fitting


# -- what the caller fixed -------------------------------------------------------------------------------------------


def test_measured_point_with_the_callers_settings_is_preferred() -> None:
    assert chosen(Clip(width=64, height=64, num_frames=29, attention="tile:2:6")).point is TILE
    assert chosen(Clip(width=64, height=64, num_frames=29, sampler="consistency")).point is STUDENT
    assert chosen(Clip(width=64, height=64, num_frames=29, num_steps=20)).point is QUICK
    assert chosen(Clip(width=64, height=64, num_frames=29, num_steps=50), latency_s=5.0).point is TILE


def test_settings_never_measured_are_run_from_the_points_nearest_in_steps() -> None:
    choice = chosen(Clip(width=64, height=64, num_frames=29, num_steps=18))
    assert (choice.point.name, choice.point.num_steps, choice.is_measured) == ("quick", 18, False)
    assert choice.predicted_s == pytest.approx(18 * 0.1 + 1.0)
    miss = missed(Clip(width=64, height=64, num_frames=29, num_steps=18), quality_floor=0.1)
    assert miss.breaks == ("quality",)
    assert "not measured" in miss.message


@pytest.mark.parametrize(
    ("fixed", "name"),
    [
        ({"num_steps": 18, "attention": "tile:2:6"}, "tile"),  # fewer steps of the same kind
        ({"num_steps": 5, "attention": "tile:2:6"}, "student"),  # so few that it needs the weights made for it
        ({"num_steps": 30, "sampler": "consistency"}, "student"),
        ({"attention": "ras:0.5", "num_steps": 40}, "best"),
    ],
)
def test_nearest_point_is_of_the_same_sampler_about_as_many_steps_and_the_same_attention(
    fixed: dict[str, Any], name: str
) -> None:
    choice = chosen(Clip(width=64, height=64, num_frames=29, **fixed))
    assert (choice.point.name, choice.is_measured) == (name, False)


def test_second_branch_of_guidance_costs_another_pass() -> None:
    plain = chosen(Clip(width=64, height=64, num_frames=29, guidance_scale=1.0, num_steps=50))
    assert plain.predicted_s == pytest.approx(50 * 0.05 + 1.0)
    guided = chosen(Clip(width=64, height=64, num_frames=29, guidance_scale=3.0, sampler="consistency"))
    assert (guided.point.sampler, guided.predicted_s) == ("consistency", pytest.approx(4 * 0.1 + 1.0))


def test_combinations_that_cannot_be_are_left_out() -> None:
    def is_possible(one: VideoPoint) -> bool:
        return (one.variant == "student") == (one.sampler == "consistency")

    clip = Clip(width=64, height=64, num_frames=29, sampler="consistency", attention="ras:0.5")
    choice = choose(POINTS, clip, VideoBudget(), is_possible=is_possible)
    assert isinstance(choice, PointChoice)
    assert (choice.point.variant, choice.point.attention) == ("student", "ras:0.5")
    nothing = choose(POINTS, clip, VideoBudget(), is_possible=lambda one: False)
    assert isinstance(nothing, NearestMiss)
    assert nothing.nearest is None


# -- sizes -----------------------------------------------------------------------------------------------------------


def test_cost_of_other_sizes_is_read_between_and_beyond_those_measured() -> None:
    two = point("p", 10, 0.5, costs=(cost(0.5, 4.0, num_frames=100), cost(0.1, 2.0, num_frames=20)))

    def seconds(num_frames: int) -> float:
        return two.seconds(64, 64, num_frames)

    assert seconds(20) == pytest.approx(10 * 0.1 + 2.0)
    assert seconds(100) == pytest.approx(10 * 0.5 + 4.0)
    assert seconds(60) == pytest.approx(10 * 0.3 + 3.0)
    assert seconds(10) == pytest.approx(10 * 0.05 + 1.0)
    assert seconds(200) == pytest.approx(10 * 2.0 + 8.0)
    ascending = [seconds(frames) for frames in range(1, 300)]
    assert all(a < b for a, b in itertools.pairwise(ascending))


# -- numbers out of range --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"num_steps": 0},
        {"quality": 1.1},
        {"quality": math.nan},
        {"watts": 0.0},
        {"guidance_scale": -1.0},
        {"costs": ()},
    ],
)
def test_impossible_points_are_refused(change: dict[str, Any]) -> None:
    fine = {"name": "p", "num_steps": 1, "quality": 0.5, "guidance_scale": 1.0, "watts": 1.0, "costs": (cost(0.1),)}
    with pytest.raises(ValueError, match="point"):
        VideoPoint(variant="teacher", sampler="ddim", attention="dense", **{**fine, **change})


def test_impossible_costs_and_budgets_are_refused() -> None:
    for numbers in ((0.0, 1.0), (math.inf, 1.0), (0.1, -1.0), (math.nan, 0.0)):
        with pytest.raises(ValueError, match="step_s"):
            cost(*numbers)
    with pytest.raises(ValueError, match="size"):
        cost(0.1, num_frames=0)
    for name in ("latency_s", "energy_j", "quality_floor"):
        with pytest.raises(ValueError, match=name):
            VideoBudget(**{name: math.nan})
