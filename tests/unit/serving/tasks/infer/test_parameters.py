"""Parameters of the Open Inference Protocol, ours and Triton's."""

from __future__ import annotations

import time
from typing import Any

import pytest

from serving.domain import Budget, Priority
from serving.errors import ClientError, InvalidRequest, UnknownField, UnsupportedField
from serving.limits import IngressLimits
from serving.tasks.infer.parameters import Wishes, read_parameters, report_parameters
from tests.support.fake_service import make_card, make_report

LIMITS = IngressLimits(max_images=4)
CARD = make_card()


def read(parameters: dict[str, Any], fallback: Budget | None = None) -> Wishes:
    return read_parameters(parameters, fallback or Budget(), CARD, LIMITS)


def test_report_travels_as_parameters() -> None:
    parameters = report_parameters(make_report())
    assert parameters["vireo_operating_point"] == "fast"
    assert parameters["vireo_degraded"] == "exit_threshold"
    assert parameters["vireo_guard"] == '{"score":0.0,"action":"normal","reasons":[]}'
    assert len(parameters) == 8


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        ({"temperature": 1}, UnknownField),
        ({"timeout": -5}, InvalidRequest),
        ({"timeout": 1.5}, InvalidRequest),
        ({"timeout": 1 << 60}, InvalidRequest),
        ({"priority": 4}, InvalidRequest),
        ({"priority": -1}, InvalidRequest),
        ({"priority": "high"}, InvalidRequest),
        ({"priority": 1, "vireo_priority": "low"}, InvalidRequest),
        ({"sequence_id": 1}, UnsupportedField),
        ({"sequence_id": "a"}, UnsupportedField),
        ({"sequence_start": True}, UnsupportedField),
        ({"sequence_id": 1.0}, InvalidRequest),
        ({"triton_enable_empty_final_response": "yes"}, InvalidRequest),
        ({"top_k": 1.5}, InvalidRequest),
        ({"top_k": "1"}, InvalidRequest),
        ({"top_k": True}, InvalidRequest),
        ({"top_k": 0}, InvalidRequest),
        ({"top_k": 10**400}, InvalidRequest),
        ({"vireo_latency_ms": "5"}, InvalidRequest),
        ({"vireo_latency_ms": True}, InvalidRequest),
        ({"vireo_latency_ms": float("nan")}, InvalidRequest),
        ({"vireo_latency_ms": 10**400}, InvalidRequest),
        ({"vireo_energy_j": -1}, InvalidRequest),
        ({"vireo_priority": "urgent"}, InvalidRequest),
        ({"vireo_priority": 1}, InvalidRequest),
        ({"vireo_latency_ms": [1]}, InvalidRequest),
        ({"binary_data_output": 1}, InvalidRequest),
    ],
)
def test_bad_parameter_is_refused(parameters: dict[str, Any], error: type[ClientError]) -> None:
    with pytest.raises(error) as caught:
        read(parameters)
    assert next(iter(parameters)).removeprefix("vireo_") in caught.value.message


def test_parameters_override_the_fallback_field_by_field() -> None:
    fallback = Budget(latency_ms=5.0, energy_j=2.0)
    wishes = read({"vireo_energy_j": 1, "vireo_priority": "low", "top_k": 3}, fallback)
    budget = wishes.budget
    assert (budget.latency_ms, budget.energy_j, budget.priority.value, wishes.top_k) == (5.0, 1.0, "low", 3)


def test_what_asks_for_nothing_passes() -> None:
    nothing = {
        "priority": 0,
        "timeout": 0,
        "sequence_id": 0,
        "sequence_start": False,
        "sequence_end": False,
        "triton_enable_empty_final_response": True,
        "binary_data_output": False,
    }
    assert read(nothing) == read({"sequence_id": ""}) == read(dict.fromkeys(nothing)) == Wishes(budget=Budget())
    assert read(dict.fromkeys(["top_k", "vireo_energy_j", "vireo_settings.exit_1", "no_such"])) == read({})


@pytest.mark.parametrize(("number", "priority"), [(1, "high"), (2, "normal"), (3, "low")])
def test_tritons_priority_counts_down(number: int, priority: str) -> None:
    assert read({"priority": number}, Budget(priority=Priority.LOW)).budget.priority.value == priority
    assert read({"priority": number, "vireo_priority": priority}).budget.priority.value == priority


def test_tritons_timeout_is_a_deadline_and_no_budget() -> None:
    before_s = time.monotonic()
    wishes = read({"timeout": 2_000_000})
    assert wishes.budget == Budget()
    assert wishes.deadline_s is not None
    assert before_s + 2 <= wishes.deadline_s <= time.monotonic() + 2
