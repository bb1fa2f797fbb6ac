from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest

from schedulers.operating_points import Budget, Choice, Infeasible, OperatingPointTable, choose, with_settings

NEVER, ALWAYS = 1e8, -1e8


def point(name: str, ms: float, joules: float, accuracy: float) -> dict[str, Any]:
    return {
        "name": name,
        "thresholds": [0.9, 1e8, -1e8],
        "exit_shares": [0.5, 0.0, 0.5],
        "expected_flops": 1e6,
        "flops_fraction": 0.5,
        "ms_by_batch": {"1": ms, "8": 4 * ms},
        "joules_per_sample": joules,
        "accuracy": accuracy,
    }


def document() -> dict[str, Any]:
    return {
        "format": 1,
        "model": "dyn-perceiver-nano",
        "checkpoint_sha256": "ab" * 32,
        "exit_flops": [1e6, 2e6, 3e6],
        "stage_cost_ms": {"batch_sizes": [1, 8], "stages": [[1.0, 4.0], [2.0, 5.0], [1.0, 3.0]]},
        "energy": {"source": "estimate", "watts": 10.0},
        "points": [
            point("fast", 2.0, 0.01, 0.90),
            point("full", 8.0, 0.08, 0.98),
            point("middle", 4.0, 0.03, 0.96),
        ],
        "made_by": "a newer version",
    }


TABLE = OperatingPointTable.from_dict(document())


def test_reads_what_calibration_writes() -> None:
    table = OperatingPointTable.from_dict(json.loads(json.dumps(document())))
    assert table == TABLE
    assert table.num_exits == 3
    assert table.batch_sizes == (1, 8)
    assert table.stage_seconds[1] == (0.002, 0.005)
    assert table.point("middle").ms_by_batch == {1: 4.0, 8: 16.0}
    assert table.cost_model().batch_s(2, 8) == pytest.approx(0.003)
    with pytest.raises(KeyError, match="middle"):
        table.point("best")


def test_thresholds_that_a_request_sets_are_priced_by_the_cheapest_point_that_is_set_nowhere_lower() -> None:
    low, high = (0.5, 0.5, ALWAYS), (0.9, NEVER, ALWAYS)
    data = document()
    data["points"] = [
        point("fast", 2.0, 0.01, 0.90) | {"thresholds": [ALWAYS, NEVER, ALWAYS]},
        point("low", 4.0, 0.03, 0.96) | {"thresholds": list(low)},
        point("high", 6.0, 0.05, 0.97) | {"thresholds": list(high)},
        point("full", 8.0, 0.08, 0.98) | {"thresholds": [NEVER, NEVER, ALWAYS]},
    ]
    table = OperatingPointTable.from_dict(data)
    asked = with_settings(table, {"exit_1": 0.7})
    assert asked.points[1].thresholds == (0.7, 0.5, ALWAYS)
    assert {p.thresholds for p in asked.points} == {(0.7, NEVER, ALWAYS), (0.7, 0.5, ALWAYS)}
    assert [p.joules_per_sample for p in asked.points] == [0.05] * 4
    assert {p.accuracy for p in asked.points} == {0.90}
    assert asked.points[1].name == "low+exit_1=0.7"
    # As calibrated already: nothing changes.
    assert with_settings(table, {"exit_1": 0.5}).points[1] == table.points[1]
    # All leave at exit 1, and what stands behind it does not matter; none leaves anywhere: the dearest.
    assert [p.joules_per_sample for p in with_settings(table, {"exit_1": 0.0}).points] == [0.01] * 4
    assert {p.joules_per_sample for p in with_settings(table, {"exit_1": 2.0, "exit_2": 2.0}).points} == {0.08}


def test_other_settings_are_read_from_the_table_and_priced_alike() -> None:
    data = document()
    data["points"] = [
        point(f"depth={depth}", 2.0 * depth, 0.01 * depth, 0.9 + 0.02 * depth) | {"settings": {"depth": depth}}
        for depth in (1, 3)
    ]
    table = OperatingPointTable.from_dict(data)
    assert [p.settings for p in table.points] == [{"depth": 1}, {"depth": 3}]
    between = with_settings(table, {"depth": 2})
    assert {p.settings["depth"] for p in between.points} == {2}
    assert [p.joules_per_sample for p in between.points] == [0.03, 0.03]
    assert {p.accuracy for p in between.points} == {0.92}
    unknown = with_settings(table, {"mode": "other"})
    assert [p.joules_per_sample for p in unknown.points] == [0.03, 0.03]
    assert len({p.key for p in (*table.points, *between.points)}) == 4


DELETE = object()


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (("format",), 2, "format"),
        (("model",), DELETE, "model"),
        (("model",), 7, "model"),
        (("checkpoint_sha256",), "", "checkpoint_sha256"),
        (("exit_flops",), [], "exit_flops"),
        (("exit_flops",), [3e6, 2e6, 1e6], "exit_flops"),
        (("exit_flops",), "123", "exit_flops"),
        (("exit_flops",), [1e6, 2e6], "stage_cost_ms.stages"),
        (("stage_cost_ms",), [], "stage_cost_ms"),
        (("stage_cost_ms", "batch_sizes"), [1.5, 8], "stage_cost_ms.batch_sizes"),
        (("stage_cost_ms", "batch_sizes"), [8, 1], "stage_cost_ms"),
        (("stage_cost_ms", "stages", 1), [2.0], r"stage_cost_ms.stages\[1\]"),
        (("stage_cost_ms", "stages", 1, 0), 0.0, "stage_cost_ms"),
        (("stage_cost_ms", "stages", 1, 0), math.nan, r"stage_cost_ms.stages\[1\]"),
        (("energy", "watts"), -1.0, "energy.watts"),
        (("energy", "watts"), "10", "energy.watts"),
        (("energy", "source"), None, "energy.source"),
        (("points",), [], "points"),
        (("points", 0), 3, r"points\[0\]"),
        (("points", 1, "name"), "fast", "points"),
        (("points", 1, "thresholds"), [0.5], r"points\[1\].thresholds"),
        (("points", 1, "thresholds", 0), math.nan, r"points\[1\].thresholds"),
        (("points", 1, "exit_shares"), [0.5, 0.5, 0.5], r"points\[1\].exit_shares"),
        (("points", 1, "exit_shares"), [1.5, -0.5, 0.0], r"points\[1\].exit_shares"),
        (("points", 1, "joules_per_sample"), math.inf, r"points\[1\].joules_per_sample"),
        (("points", 1, "joules_per_sample"), True, r"points\[1\].joules_per_sample"),
        (("points", 1, "accuracy"), 1.5, r"points\[1\].accuracy"),
        (("points", 1, "ms_by_batch"), {}, r"points\[1\].ms_by_batch"),
        (("points", 1, "ms_by_batch"), {"one": 1.0}, r"points\[1\].ms_by_batch"),
        (("points", 1, "ms_by_batch"), {"1": None}, r"points\[1\].ms_by_batch.1"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_damaged_table_is_refused_by_the_name_of_the_field(path: tuple, value: object, field: str) -> None:
    data = copy.deepcopy(document())
    where: Any = data
    for step in path[:-1]:
        where = where[step]
    if value is DELETE:
        del where[path[-1]]
    else:
        where[path[-1]] = value
    with pytest.raises(ValueError, match=rf"^{field}"):
        OperatingPointTable.from_dict(data)


def test_document_that_is_no_object_is_refused() -> None:
    with pytest.raises(ValueError, match="table"):
        OperatingPointTable.from_dict([])  # type: ignore[arg-type]


def chosen(predicted_queue_s: float = 0.0, **budget: float) -> Choice:
    choice = choose(TABLE, Budget(**budget), predicted_queue_s)
    assert isinstance(choice, Choice)
    return choice


def test_without_a_budget_the_most_accurate_point_is_chosen() -> None:
    choice = chosen()
    assert choice.point.name == "full"
    assert choice.degraded == ()
    assert choice.predicted_service_s == pytest.approx(0.008)
    assert choice.predicted_j == pytest.approx(0.08)
    assert choice.predicted_work_s == pytest.approx(0.008)


@pytest.mark.parametrize(
    ("budget", "queue_s", "name", "degraded"),
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
def test_best_point_that_fits_is_chosen(budget: dict, queue_s: float, name: str, degraded: tuple) -> None:
    choice = chosen(queue_s, **budget)
    assert (choice.point.name, choice.degraded) == (name, degraded)


def test_of_equally_good_points_the_cheapest_is_chosen() -> None:
    data = document()
    data["points"].append(point("frugal", 9.0, 0.07, 0.98))
    choice = choose(OperatingPointTable.from_dict(data), Budget(), 0.0)
    assert isinstance(choice, Choice)
    assert choice.point.name == "frugal"


@pytest.mark.parametrize(
    ("budget", "queue_s", "nearest", "breaks", "retry_after_s"),
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
    budget: dict, queue_s: float, nearest: str, breaks: tuple, retry_after_s: float | None
) -> None:
    answer = choose(TABLE, Budget(**budget), queue_s)
    assert isinstance(answer, Infeasible)
    assert (answer.nearest.name, answer.breaks) == (nearest, breaks)
    assert nearest in answer.message
    assert all(kind in answer.message for kind in breaks)
    assert answer.retry_after_s == (None if retry_after_s is None else pytest.approx(retry_after_s))


@pytest.mark.parametrize("name", ["latency_s", "energy_j", "quality_floor"])
@pytest.mark.parametrize("value", [math.nan, -1.0, -math.inf])
def test_budget_that_is_no_budget_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        Budget(**{name: value})


@pytest.mark.parametrize("queue_s", [math.nan, -0.1, math.inf])
def test_queue_that_is_no_time_is_refused(queue_s: float) -> None:
    with pytest.raises(ValueError, match="predicted_queue_s"):
        choose(TABLE, Budget(), queue_s)


def test_energy_without_watts_falls_back_to_time() -> None:
    data = document()
    data["energy"]["watts"] = 0.0
    choice = choose(OperatingPointTable.from_dict(data), Budget(), 0.0)
    assert isinstance(choice, Choice)
    assert choice.predicted_work_s == pytest.approx(0.008)
