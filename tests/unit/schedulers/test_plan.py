"""Which operating point a request gets: budgets, what it fixed itself, and what is said when nothing fits."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedulers.plan import (
    Budget,
    Cost,
    Load,
    Plan,
    Point,
    Refusal,
    Settings,
    Units,
    dominated,
    plan,
    with_settings,
)


def point(name: str, seconds: float, joules: float, quality: float | None, **settings: Any) -> Point:
    """Of a family whose requests are one unit of work each."""
    cost = Cost(latency_s={"macs": seconds}, busy_s={"macs": joules / 10}, watts=10.0)
    return Point(name=name, settings=settings or {"name": name}, cost=cost, quality=quality)


POINTS = (point("fast", 0.002, 0.01, 0.90), point("full", 0.008, 0.08, 0.98), point("middle", 0.004, 0.03, 0.96))


def one_unit(settings: Settings) -> Units:
    return {"macs": 1.0}


def name_of(settings: Settings) -> str:
    return ",".join(f"{name}={settings[name]}" for name in sorted(settings))


def planned(wait_s: float = 0.0, points: tuple[Point, ...] = POINTS, **budget: float) -> Plan:
    made = plan(points, one_unit, Budget(**budget), Load(queued_s=wait_s))
    assert isinstance(made, Plan)
    return made


def refused(wait_s: float = 0.0, points: tuple[Point, ...] = POINTS, **budget: float) -> Refusal:
    made = plan(points, one_unit, Budget(**budget), Load(queued_s=wait_s))
    assert isinstance(made, Refusal)
    return made


# -- budgets ---------------------------------------------------------------------------------------------------------


def test_without_a_budget_the_best_point_is_chosen() -> None:
    made = planned()
    assert (made.point.name, made.degraded) == ("full", ())
    assert (made.latency_s, made.busy_s, made.energy_j) == pytest.approx((0.008, 0.008, 0.08))


@pytest.mark.parametrize(
    ("budget", "wait_s", "name", "degraded"),
    [
        ({"latency_s": 0.008}, 0.0, "full", ()),
        ({"latency_s": 0.0079}, 0.0, "middle", ("latency",)),
        ({"latency_s": 0.008}, 0.005, "fast", ("latency",)),
        ({"energy_j": 0.05}, 0.0, "middle", ("energy",)),
        ({"energy_j": 0.01, "latency_s": 0.004}, 0.0, "fast", ("latency", "energy")),
        ({"energy_j": 0.05, "quality_floor": 0.95}, 0.0, "middle", ("energy",)),
        ({"quality_floor": 0.98}, 1.0, "full", ()),
        ({"latency_s": math.inf, "energy_j": math.inf}, 1.0, "full", ()),
    ],
)
def test_best_point_that_fits_is_chosen(budget: dict, wait_s: float, name: str, degraded: tuple) -> None:
    made = planned(wait_s, **budget)
    assert (made.point.name, made.degraded) == (name, degraded)


def test_of_equally_good_points_the_cheapest_is_chosen() -> None:
    assert planned(points=(*POINTS, point("frugal", 0.009, 0.07, 0.98))).point.name == "frugal"


def test_point_that_nobody_measured_comes_last_and_meets_no_floor() -> None:
    points = (point("guess", 0.001, 0.001, None), point("poor", 0.002, 0.01, 0.01))
    assert planned(points=points).point.name == "poor"
    assert planned(points=points, latency_s=0.0015).point.name == "guess"
    miss = refused(points=points[:1], quality_floor=0.01)
    assert "not measured" in miss.message
    assert miss.breaks == ("quality",)


@pytest.mark.parametrize(
    ("budget", "wait_s", "nearest", "breaks", "retry_after_s"),
    [
        ({"latency_s": 0.004}, 0.010, "fast", ("latency",), 0.008),
        ({"latency_s": 0.001}, 0.010, "fast", ("latency",), None),
        ({"latency_s": 0.0}, 0.0, "full", ("latency",), None),
        ({"energy_j": 0.005}, 0.0, "fast", ("energy",), None),
        ({"quality_floor": 0.99}, 0.0, "full", ("quality",), None),
        ({"quality_floor": 0.97, "energy_j": 0.07}, 0.0, "middle", ("quality",), None),
        ({"quality_floor": 2.0, "energy_j": 0.001}, 0.0, "fast", ("energy", "quality"), None),
    ],
)
def test_when_nothing_fits_the_nearest_point_and_what_it_breaks_are_named(
    budget: dict, wait_s: float, nearest: str, breaks: tuple, retry_after_s: float | None
) -> None:
    miss = refused(wait_s, **budget)
    assert miss.nearest is not None
    assert (miss.nearest.point.name, miss.breaks) == (nearest, breaks)
    assert nearest in miss.message
    assert all(kind in miss.message for kind in breaks)
    assert miss.retry_after_s == (None if retry_after_s is None else pytest.approx(retry_after_s))


def test_message_gives_value_limit_and_remedy() -> None:
    assert "fast, breaks latency 2 ms of 1 ms; loosen" in refused(latency_s=0.001).message
    assert "full, breaks quality 0.9800 under 0.9900" in refused(quality_floor=0.99).message


def test_no_point_is_no_matter_of_budget() -> None:
    miss = refused(points=())
    assert (miss.nearest, miss.feasible, miss.breaks) == (None, None, ())
    assert "combination" in miss.message


_BUDGETS = st.tuples(*(st.one_of(st.none(), st.floats(0, bound)) for bound in (40, 400, 1)))
_DRAWN = st.lists(st.tuples(st.floats(0, 30), st.floats(0, 300), st.none() | st.floats(0, 1)), min_size=1, max_size=6)


def by_hand(points: list[Point], budget: Budget, wait_s: float) -> Point | None:
    """What ``plan`` is the fast way to."""

    def fits(one: Point) -> bool:
        return (
            (budget.latency_s is None or wait_s + one.cost.latency({"macs": 1.0}) <= budget.latency_s)
            and (budget.energy_j is None or one.cost.watts * one.cost.busy({"macs": 1.0}) <= budget.energy_j)
            and (budget.quality_floor is None or (one.quality or 0.0) >= budget.quality_floor)
        )

    best: Point | None = None
    for one in points:
        if fits(one) and (best is None or _rank(one) < _rank(best)):
            best = one
    return best


def _rank(one: Point) -> tuple[float, ...]:
    if one.quality is None:
        return (math.inf, 0.0, 0.0)
    return (-one.quality, one.cost.watts * one.cost.busy({"macs": 1.0}), one.cost.latency({"macs": 1.0}))


@given(_DRAWN, _BUDGETS, st.floats(0, 10))
def test_planner_does_what_a_plain_search_does(
    drawn: list[tuple[float, float, float | None]], numbers: tuple[float | None, ...], wait_s: float
) -> None:
    points = [point(f"p{i}", *numbers) for i, numbers in enumerate(drawn)]
    budget = Budget(latency_s=numbers[0], energy_j=numbers[1], quality_floor=numbers[2])
    made, expected = plan(points, one_unit, budget, Load(queued_s=wait_s)), by_hand(points, budget, wait_s)
    if isinstance(made, Plan):
        assert made.point is expected
        assert bool(made.degraded) == (expected is not min(points, key=_rank))
        return
    assert expected is None
    assert made.feasible is not None
    loosened = plan(points, one_unit, made.feasible, Load(queued_s=wait_s))
    assert isinstance(loosened, Plan), "the budget that a refusal names is feasible"


# -- points that are never picked ------------------------------------------------------------------------------------


def test_point_that_is_dearer_and_no_better_is_dominated_by_the_one_that_is_picked_for_it() -> None:
    points = (*POINTS, point("slow", 0.005, 0.04, 0.96), point("worse", 0.004, 0.03, 0.95))
    assert dominated(points, one_unit) == {"slow": "middle", "worse": "middle"}


@pytest.mark.parametrize(
    "other",
    [
        point("quick", 0.003, 0.04, 0.96),  # takes more joules than the middle one, but less time
        point("frugal", 0.005, 0.02, 0.96),
        point("unknown", 0.009, 0.09, None),
        point("twin", 0.004, 0.03, 0.96),
    ],
)
def test_point_that_is_better_in_something_or_of_unknown_quality_is_not_dominated(other: Point) -> None:
    assert dominated((*POINTS, other), one_unit) == {}


_few = st.sampled_from([0.001, 0.002, 0.003, 0.004])
_limits = st.none() | _few


@given(
    st.lists(st.tuples(_few, _few, st.sampled_from([None, 0.5, 0.7, 0.9])), min_size=1, max_size=7),
    st.tuples(_limits, _limits, st.sampled_from([None, 0.5, 0.6, 0.7])),
    st.sampled_from([0.0, 0.001, 0.002]),
    st.integers(1, 3),
)
def test_a_dominated_point_changes_no_plan_and_no_refusal(
    made: list[tuple[float, float, float | None]],
    limits: tuple[float | None, float | None, float | None],
    queued_s: float,
    rows: int,
) -> None:
    points = [point(str(number), *one) for number, one in enumerate(made)]
    left = [one for one in points if one.name not in dominated(points, one_unit)]
    budget, load = (
        Budget(latency_s=limits[0], energy_j=limits[1], quality_floor=limits[2]),
        Load(queued_s=queued_s, rows=rows),
    )
    assert plan(left, one_unit, budget, load) == plan(points, one_unit, budget, load)


def test_settings_of_a_request_may_name_a_dominated_point_which_is_known_better_than_its_neighbours() -> None:
    points = [point(f"n={n}", 0.01 * n, 0.1 * n, quality, n=n) for n, quality in ((1, 0.7), (2, 0.6), (4, 0.9))]
    assert dominated(points, one_unit) == {"n=2": "n=1"}
    (exact,) = with_settings(points, {"n": 2}, one_unit, name_of)
    assert (exact.quality, exact.cost.latency(one_unit({}))) == (0.6, 0.02)
    (between,) = with_settings([points[0], points[2]], {"n": 2}, one_unit, name_of)
    assert (between.quality, between.cost.latency(one_unit({}))) == (0.7, pytest.approx(0.04)), (
        "bounds, if it were gone"
    )


# -- what the request fixed itself -----------------------------------------------------------------------------------


def exits(name: str, seconds: float, quality: float, first: float, second: float) -> Point:
    return point(name, seconds, seconds, quality, exit_1=first, exit_2=second)


EXITS = (
    exits("first", 2.0, 0.90, 0.0, 0.0),
    exits("low", 4.0, 0.96, 0.5, 0.5),
    exits("high", 6.0, 0.97, 0.9, 2.0),
    exits("full", 8.0, 0.98, 2.0, 2.0),
)


def test_between_points_the_dearer_cost_and_the_lower_quality_count() -> None:
    made = with_settings(EXITS, {"exit_1": 0.7}, one_unit, name_of)
    # The last two become the same settings, which "high" bounds from above and "low" from below.
    assert [p.name for p in made] == ["exit_1=0.7,exit_2=0.0", "exit_1=0.7,exit_2=0.5", "exit_1=0.7,exit_2=2.0"]
    assert [p.cost.latency({"macs": 1.0}) for p in made] == pytest.approx([6.0] * 3)
    assert [p.quality for p in made] == [0.90, 0.96, 0.96]


def test_what_was_measured_is_taken_as_it_is() -> None:
    made = with_settings(EXITS, {"exit_1": 0.5}, one_unit, name_of)
    assert EXITS[1] in made
    assert with_settings(EXITS, {"exit_1": 0.0, "exit_2": 0.0}, one_unit, name_of) == (EXITS[0],)
    assert with_settings(EXITS, {"exit_1": 2.0, "exit_2": 2.0}, one_unit, name_of) == (EXITS[3],)
    assert with_settings(EXITS, {}, one_unit, name_of) == EXITS


def test_setting_that_no_point_has_costs_what_the_dearest_does_and_promises_nothing() -> None:
    (made,) = {p.name: p for p in with_settings(EXITS[:1], {"mode": "other"}, one_unit, name_of)}.values()
    assert (made.quality, made.cost.latency({"macs": 1.0})) == (None, 2.0)
    assert made.settings == {"exit_1": 0.0, "exit_2": 0.0, "mode": "other"}


def clip(name: str, steps: int, quality: float, step_s: float = 0.1, **options: Any) -> Point:
    settings = {"sampler": "ddim", "attention": "dense", "guidance": 4.0, **options, "steps": steps}
    cost = Cost(latency_s={"slices": step_s, "pixels": 1.0}, busy_s={"slices": step_s, "pixels": 1.0}, watts=10.0)
    return Point(name=name, settings=settings, cost=cost, quality=quality)


BEST = clip("best", 50, 0.9)
TILE = clip("tile", 50, 0.8, 0.06, attention="tile:2:6")
QUICK = clip("quick", 20, 0.7)
STUDENT = clip("student", 4, 0.6, 0.05, sampler="consistency", guidance=1.0)
CLIPS = (STUDENT, QUICK, TILE, BEST)


def clip_work(settings: Settings) -> Units:
    return {"slices": float(settings["steps"]), "pixels": 1.0}


def clips(**fixed: Any) -> tuple[Point, ...]:
    return with_settings(CLIPS, fixed, clip_work, name_of)


def test_measured_points_with_the_requests_settings_are_preferred() -> None:
    assert clips(attention="tile:2:6") == (TILE,)
    assert clips(sampler="consistency") == (STUDENT,)
    assert clips(steps=20) == (QUICK,)
    assert set(map(id, clips(steps=50))) == {id(TILE), id(BEST)}


def test_settings_never_measured_are_made_of_the_point_nearest_to_them() -> None:
    (made,) = clips(steps=18)
    assert (made.settings["steps"], made.quality) == (18, None)
    assert made.cost.latency(clip_work(made.settings)) == pytest.approx(18 * 0.1 + 1.0)


def test_settings_between_two_measured_ones_have_a_quality() -> None:
    (made,) = [p for p in clips(steps=30) if p.settings["attention"] == "dense"]
    assert made.quality == 0.7
    assert made.cost.latency(clip_work(made.settings)) == pytest.approx(30 * 0.1 + 1.0)


@pytest.mark.parametrize(
    ("fixed", "base"),
    [
        ({"steps": 18, "attention": "tile:2:6"}, TILE),  # fewer steps of the same kind
        ({"steps": 5, "attention": "tile:2:6"}, STUDENT),  # so few that it needs the weights made for it
        ({"steps": 3, "sampler": "consistency"}, STUDENT),
        ({"attention": "ras:0.5", "steps": 40}, BEST),
    ],
)
def test_nearest_point_has_most_settings_in_common_and_about_as_many_steps(fixed: dict[str, Any], base: Point) -> None:
    (made,) = clips(**fixed)
    assert (made.settings, made.quality) == ({**base.settings, **fixed}, None)


def test_combinations_that_cannot_be_are_left_out() -> None:
    def same_weights(base: Settings, made: Settings) -> bool:
        return (base["sampler"] == "consistency") == (made["sampler"] == "consistency")

    fixed = {"sampler": "consistency", "attention": "ras:0.5"}
    (made,) = with_settings(CLIPS, fixed, clip_work, name_of, same_weights)
    assert made.settings == {**STUDENT.settings, **fixed}
    assert with_settings(CLIPS, fixed, clip_work, name_of, lambda base, made: False) == ()


@given(st.integers(1, 60), st.sampled_from(["dense", "tile:2:6", "ras:0.5"]), st.floats(1, 8))
def test_bounds_of_unmeasured_settings_never_undercut_a_point_that_they_cover(
    steps: int, attention: str, guidance: float
) -> None:
    for made in clips(steps=steps, attention=attention, guidance=guidance):
        covered = [p for p in CLIPS if _is_below(p.settings, made.settings)]
        covering = [p for p in CLIPS if _is_below(made.settings, p.settings)]
        if made.quality is not None and made not in CLIPS:
            assert covered
            assert made.quality <= min(max(p.quality or 0.0 for p in covered), max(p.quality or 0.0 for p in covering))
        if covering:
            most = min(p.cost.latency(clip_work(p.settings)) for p in covering)
            assert made.cost.latency(clip_work(made.settings)) <= most * (1 + 1e-9)


def _is_below(low: Settings, high: Settings) -> bool:
    return (
        low["sampler"] == high["sampler"]
        and low["attention"] == high["attention"]
        and float(low["steps"]) <= float(high["steps"])
        and float(low["guidance"]) <= float(high["guidance"])
    )


# -- numbers out of range --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["latency_s", "energy_j", "quality_floor"])
@pytest.mark.parametrize("value", [math.nan, -1.0, -math.inf])
def test_budget_that_is_no_budget_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        Budget(**{name: value})


@pytest.mark.parametrize("wait_s", [math.nan, -0.1, math.inf])
def test_wait_that_is_no_time_is_refused(wait_s: float) -> None:
    with pytest.raises(ValueError, match="queued_s"):
        Load(queued_s=wait_s)


def test_load_without_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="rows is 0"):
        Load(rows=0)


def test_rows_that_come_together_wait_for_their_shares_of_the_batch() -> None:
    cost = Cost(latency_s={"macs": 1.0}, busy_s={"macs": 0.25}, watts=2.0)
    points = [Point(name="only", settings={}, cost=cost)]
    made = plan(points, one_unit, Budget(latency_s=2.0, energy_j=0.5), Load(queued_s=0.25, rows=4))
    assert isinstance(made, Plan)
    assert (made.latency_s, made.busy_s, made.energy_j) == (1.75, 0.25, 0.5)
    assert isinstance(plan(points, one_unit, Budget(latency_s=2.0), Load(queued_s=0.25, rows=5)), Refusal)
    guess = [Point(name="only", settings={}, cost=Cost(latency_s={}, busy_s={"macs": 9.0}, watts=2.0))]
    assert isinstance(plan(guess, one_unit, Budget(latency_s=0.1), Load(rows=5)), Plan)


@pytest.mark.parametrize("number", [math.nan, -0.1, math.inf])
def test_cost_that_is_no_number_is_refused(number: float) -> None:
    fine: dict[str, Any] = {"latency_s": {"macs": 1.0}, "busy_s": {"macs": 1.0}, "watts": 1.0}
    for change in ({"latency_s": {"macs": number}}, {"busy_s": {"macs": number}}, {"watts": number}):
        with pytest.raises(ValueError, match="finite"):
            Cost(**{**fine, **change})
