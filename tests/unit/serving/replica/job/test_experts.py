"""What a replica says of its experts, and what gateways make of that."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from serving.delivery.job.experts import ExpertReport, PlacedFacts, load_ratios
from serving.replica.job.base import StepDone
from serving.replica.job.experts import ExpertMeter
from serving.tasks.experts import shown_experts
from serving.telemetry.events import Event, ExpertsCounted, ExpertsPlaced, ExpertsRan
from tests.support.fake_service import make_card

EVEN, SKEWED = np.array([[4, 4], [4, 4]]), np.array([[8, 0], [6, 2]])


@pytest.fixture
def told() -> list[Event]:
    return []


@pytest.fixture
def meter(told: list[Event]) -> ExpertMeter:
    return ExpertMeter("moe", told.append)


def row(tenant: str, loads: np.ndarray | None, *, is_late: bool = False) -> tuple[str, bool, StepDone]:
    return tenant, is_late, StepDone(job_id="a", step=1, compute_s=0.1, loads=loads)


def test_load_ratios_are_of_thirds_of_the_layers() -> None:
    assert load_ratios(np.array([[8, 0], [4, 4], [6, 2]])) == {"first": 2.0, "middle": 1.0, "last": 1.5}


def test_slices_are_counted_by_phase_and_tenant(meter: ExpertMeter, told: list[Event]) -> None:
    meter.add([row("ada", EVEN), row("bob", SKEWED, is_late=True)])
    meter.add([row("ada", SKEWED)])
    meter.roll()
    report = meter.report()
    assert (report.slices, report.distinct) == (2, 2 + 1.5)
    assert {phase: counts.tolist() for phase, counts in report.phases.items()} == {
        "early": (EVEN + SKEWED).tolist(),
        "late": SKEWED.tolist(),
    }
    assert {tenant: int(counts.sum()) for tenant, counts in report.tenants.items()} == {"ada": 32, "bob": 16}
    assert [event.distinct for event in told if isinstance(event, ExpertsRan)] == [2.0, 1.5]
    (counted,) = (event for event in told if isinstance(event, ExpertsCounted))
    assert counted.balancedness == {"early": pytest.approx(16 / 22), "late": pytest.approx(8 / 14)}


def test_what_is_old_is_forgotten(meter: ExpertMeter) -> None:
    meter.add([row("ada", EVEN)])
    for _ in range(56):
        meter.roll()
    assert set(meter.report().tenants) == {"ada"}
    for _ in range(16):
        meter.roll()
    assert meter.report() == ExpertReport()


def test_rows_without_experts_are_no_slices(meter: ExpertMeter, told: list[Event]) -> None:
    meter.add([row("ada", None)])
    meter.roll()
    assert (meter.report(), told) == (ExpertReport(), [])


def test_tenants_are_bounded_and_no_token_is_lost(meter: ExpertMeter) -> None:
    meter.add([row(f"tenant {number}", EVEN) for number in range(100)])
    meter.roll()
    tenants = meter.report().tenants
    assert len(tenants) == 33
    assert sum(int(counts.sum()) for counts in tenants.values()) == 1600


def test_replicas_are_added_up() -> None:
    one = ExpertReport(slices=2, distinct=3.0, phases={"early": EVEN}, tenants={"ada": EVEN})
    other = ExpertReport(slices=1, distinct=2.0, phases={"early": SKEWED, "late": EVEN}, tenants={"ada": SKEWED})
    shown = shown_experts(make_card(), [one, other])
    assert (shown["replicas"], shown["slices"], shown["distinct_experts"]) == (2, 3, pytest.approx(5 / 3))
    early, late = shown["phases"]
    assert (early["loads"], late["loads"]) == ((EVEN + SKEWED).tolist(), EVEN.tolist())
    assert shown["tenants"] == [{"tenant": "ada", "tokens": 32, "balancedness": pytest.approx(16 / 22)}]
    assert EVEN.tolist() == [[4, 4], [4, 4]]  # nobody added in place
    assert shown_experts(make_card(), [ExpertReport()])["distinct_experts"] is None


def test_moves_are_told_once(meter: ExpertMeter, told: list[Event]) -> None:
    first = PlacedFacts(version=1, num_ranks=2, num_slots=4, moves=0, failed=0, rank_loads=(0.0, 0.0))
    second = replace(first, version=2, moves=3, rank_loads=(0.8, 0.2))
    for placed in (first, second, second):
        meter.roll(placed)
    assert told == [
        ExpertsPlaced("moe", 1, 0, 1.0),
        ExpertsPlaced("moe", 2, 3, 1 / 1.6),
        ExpertsPlaced("moe", 2, 0, 1 / 1.6),
    ]
    assert meter.report().placed == second
