"""Domain types: a budget that exists is a budget that makes sense."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedulers.types import Priority as SchedulerPriority
from serving.domain import (
    MAX_ENERGY_J,
    MAX_LATENCY_MS,
    RANKS,
    Budget,
    Classification,
    LabelScore,
    Priority,
    Surface,
    within_priority,
)
from serving.errors import InvalidRequest

HIGHEST = {"latency_ms": MAX_LATENCY_MS, "energy_j": MAX_ENERGY_J, "quality_floor": 1.0}
SENSELESS = [math.nan, math.inf, -math.inf, -1, -1e-300, 1e300, 10**18, 10**400, -(10**400), 10**5000]


@pytest.mark.parametrize("value", SENSELESS, ids=map(str, range(len(SENSELESS))))
@pytest.mark.parametrize("field", HIGHEST)
def test_senseless_number_is_refused_with_field_value_and_limit(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Budget(**{field: value})
    assert caught.value.param == f"vireo.{field}"
    assert f"at most {HIGHEST[field]:g}" in caught.value.message
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("field", ["latency_ms", "energy_j"])
@pytest.mark.parametrize("zero", [0, 0.0, -0.0])
def test_budget_of_nothing_is_refused(field: str, zero: float) -> None:
    with pytest.raises(InvalidRequest, match="greater than 0"):
        Budget(**{field: zero})  # type: ignore[arg-type]


@pytest.mark.parametrize("field", HIGHEST)
def test_limit_itself_is_allowed_and_the_next_number_is_not(field: str) -> None:
    values: dict[str, Any] = {field: HIGHEST[field]}
    assert getattr(Budget(**values), field) == HIGHEST[field]
    values = {field: math.nextafter(HIGHEST[field], math.inf)}
    with pytest.raises(InvalidRequest):
        Budget(**values)


@given(
    latency_ms=st.none() | st.floats(0, MAX_LATENCY_MS, exclude_min=True),
    energy_j=st.none() | st.floats(0, MAX_ENERGY_J, exclude_min=True),
    quality_floor=st.none() | st.floats(0, 1),
)
def test_every_sensible_budget_is_taken_as_it_is(
    latency_ms: float | None, energy_j: float | None, quality_floor: float | None
) -> None:
    budget = Budget(latency_ms=latency_ms, energy_j=energy_j, quality_floor=quality_floor)
    assert (budget.latency_ms, budget.energy_j, budget.quality_floor) == (latency_ms, energy_j, quality_floor)
    assert pickle.loads(pickle.dumps(budget)) == budget


@given(field=st.sampled_from(sorted(HIGHEST)), value=st.floats())
def test_no_number_outside_the_range_gets_in(field: str, value: float) -> None:
    try:
        Budget(**{field: value})  # type: ignore[arg-type]
    except InvalidRequest:
        return
    assert 0.0 <= value <= HIGHEST[field]


def test_empty_budget_limits_nothing() -> None:
    budget = Budget()
    assert (budget.latency_ms, budget.energy_j, budget.quality_floor) == (None, None, None)
    assert budget.priority is Priority.NORMAL


@pytest.mark.parametrize("highest", Priority)
@pytest.mark.parametrize("asked", Priority)
def test_priority_is_lowered_to_the_highest_allowed_and_that_is_said(asked: Priority, highest: Priority) -> None:
    allowed = within_priority(Budget(priority=asked), highest)
    assert RANKS[allowed.priority] == max(RANKS[asked], RANKS[highest])
    assert allowed.degraded == (() if allowed.priority is asked else ("priority",))


def test_every_priority_has_its_twin_in_the_scheduler() -> None:
    assert {each.name for each in Priority} == {each.name for each in SchedulerPriority}


def test_surfaces_are_spelled_for_metric_labels() -> None:
    assert all(surface.value.replace("_", "").isalpha() for surface in Surface)


def test_classification_is_named_by_its_best_class() -> None:
    best, other = LabelScore("3", 0.75), LabelScore("8", 0.2)
    answer = Classification(exit=2, top_k=(best, other), indices=(3, 8))
    assert (answer.label, answer.score, answer.degraded) == ("3", 0.75, False)
