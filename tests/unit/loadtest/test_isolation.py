"""One tenant attacks in the second of two phases; what the report says of the others."""

from __future__ import annotations

from typing import Any

import pytest

from loadtest.clients.base import Prepared, Reply
from loadtest.clients.fake import FakeClient
from loadtest.clock import LoopClock
from loadtest.execute import Result, execute
from loadtest.records import Outcome
from loadtest.report import to_json
from loadtest.scenario import Scenario, load_scenario, parse_scenario
from loadtest.tables import isolation_table
from loadtest.workloads.mix import build_load
from tests.support.virtual_loop import run_virtual
from tests.unit.loadtest.test_scenario import minimal, phase


class Attacked(FakeClient):
    """From the first piled request on, everything takes ``factor`` as long and ends as ``outcome``."""

    def __init__(self, factor: float, outcome: Outcome = Outcome.OK) -> None:
        self.is_attacked = False
        super().__init__(
            lambda _: 0.01 * (factor if self.is_attacked else 1.0),
            outcome=lambda _: outcome if self.is_attacked else Outcome.OK,
        )

    async def send(self, prepared: Prepared) -> Reply:
        drawing = prepared.payload.drawing
        assert drawing is not None
        self.is_attacked |= drawing.prompt == "a red square"
        return await super().send(prepared)


def scenario(duration_s: float = 8.0) -> Scenario:
    arrival = {"kind": "uniform", "rate_per_s": 200}
    phases = [phase(name=name, arrival=arrival, duration_s=duration_s) for name in ("even", "piled")]
    piled = {"phases": ["piled"], "draw": {"prompts": ["a red square"]}}
    mix = [
        {"surface": "http_images", "tenant": "honest"},
        {"surface": "http_images", "tenant": "attacker", "phases": ["even"]},
        {"surface": "http_images", "tenant": "attacker", **piled},
    ]
    isolation = {"baseline": "even", "attack": "piled", "tenants": ["honest"]}
    slo = {"deadline_ms": 1000, "isolation": isolation}
    return parse_scenario(minimal(mix=mix, phases=phases, slo=slo), source="x")


def run(plan: Scenario, client: FakeClient) -> Result:
    async def work() -> Result:
        return await execute(plan, build_load(plan), client, clock=LoopClock())

    return run_virtual(work())


@pytest.mark.parametrize(("factor", "is_passed"), [(1.0, True), (1.25, True), (1.5, False)])
def test_the_ratio_of_p99_is_what_the_tenant_saw_and_decides(factor: float, is_passed: bool) -> None:
    result = run(scenario(), Attacked(factor))
    shifts = {shift.tenant: shift for shift in result.shifts}
    assert {name: shift.is_protected for name, shift in shifts.items()} == {"honest": True, "attacker": False}
    assert shifts["honest"].ratio(0.99) == pytest.approx(factor, rel=1e-6)
    (check,) = result.slo
    assert (check.name, check.value, check.is_passed) == ("isolation of honest", f"{factor:.4g}", is_passed)
    assert result.is_passed is is_passed


def test_table_and_summary_show_each_tenant_in_both_phases() -> None:
    result = run(scenario(), Attacked(1.5))
    table = isolation_table(result)
    rows = {row[0]: row for row in table.rows}
    assert set(rows) == {"honest (protected)", "attacker"}
    assert rows["honest (protected)"][-3:] == ("10", "15", "1.5")
    assert {len(row) for row in table.rows} == {len(table.head)}
    shifts: Any = to_json(result, {})["shifts"]
    assert {shift["tenant"]: round(shift["p99_ratio"], 6) for shift in shifts} == {"honest": 1.5, "attacker": 1.5}


def test_too_few_requests_for_a_p99_show_nothing_and_pass_nothing() -> None:
    result = run(scenario(duration_s=2.0), Attacked(1.0))
    (check,) = result.slo
    assert not check.is_passed
    assert "p99 needs 662" in check.value
    assert isolation_table(result).rows[0][-3:] == ("n<662", "n<662", "–")


def test_a_tenant_that_is_not_answered_under_attack_is_not_isolated() -> None:
    (check,) = run(scenario(), Attacked(1.5, Outcome.TIMEOUT)).slo
    assert not check.is_passed
    assert "p99 is a failure" in check.value


def test_a_scenario_that_compares_nothing_has_no_table() -> None:
    plan = parse_scenario(minimal(), source="x")
    assert isolation_table(run(plan, FakeClient(lambda _: 0.01))).rows == ()


def test_the_shipped_attack_differs_in_the_attackers_prompts_and_in_nothing_else() -> None:
    loads = {item.phase.name: item.payloads for item in build_load(load_scenario("hot-experts"))}
    drawings = {
        (phase, tenant): [one.drawing for one in payloads if one.drawing and one.tenant == tenant]
        for phase, payloads in loads.items()
        for tenant in ("honest", "attacker")
    }
    prompts = {key: {one.prompt for one in found} for key, found in drawings.items()}
    spread, piled = prompts["spread", "honest"], prompts["piled", "attacker"]
    assert prompts["spread", "attacker"] == prompts["piled", "honest"] == spread
    assert not spread & piled
    everything = [one for found in drawings.values() for one in found]
    assert len({tuple(sorted(one.settings.items())) for one in everything}) == 1
    assert len({one.seed for one in everything}) == len(everything), "nothing comes from a cache"
    measured = [len(found) for (phase, _), found in drawings.items() if phase != "warm-up"]
    assert min(measured) >= 662
