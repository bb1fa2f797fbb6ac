"""Whole scenarios on a virtual clock."""

import asyncio
import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest

from loadtest.clients.base import TargetError
from loadtest.clients.fake import FakeClient
from loadtest.clock import LoopClock
from loadtest.execute import LEAD_S, Result, execute, make_clients, settled_memory
from loadtest.records import Outcome
from loadtest.scenario import Slo, SurfaceName, parse_scenario
from loadtest.slo import check_slo
from loadtest.summary import summarise
from loadtest.workloads.mix import build_load
from tests.support.virtual_loop import run_virtual
from tests.unit.loadtest.builders import make_record
from tests.unit.loadtest.test_scenario import minimal, phase

OPEN = {"kind": "uniform", "rate_per_s": 10}
CLOSED = {"kind": "closed", "concurrency": 2}


def run(client: Callable[[], FakeClient], *, stop_at_s: float | None = None, **fields: Any) -> Result:
    scenario = parse_scenario(minimal(**fields), source="x")

    async def work() -> Result:
        stop = asyncio.Event()
        if stop_at_s is not None:
            asyncio.get_running_loop().call_later(stop_at_s, stop.set)
        return await execute(scenario, build_load(scenario), client(), clock=LoopClock(), stop=stop)

    return run_virtual(work())


def test_open_phases_follow_each_other_without_waiting_for_answers() -> None:
    phases = [
        phase(name="warm", arrival=OPEN, duration_s=1, is_warm_up=True),
        phase(name="a", arrival=OPEN, duration_s=2),
        phase(name="b", arrival={"kind": "uniform", "rate_per_s": 2}, duration_s=1),
    ]
    result = run(lambda: FakeClient(lambda _: 5.0), phases=phases)
    assert [(w.name, w.start_s, w.end_s) for w in result.windows] == [("warm", 0, 1), ("a", 1, 3), ("b", 3, 4)]
    sent = {name: [r.sent_at_s for r in result.records if r.phase == name] for name in ("warm", "a", "b")}
    assert sent["a"] == pytest.approx([1 + k / 10 for k in range(20)])
    assert sent["b"] == pytest.approx([3.0, 3.5])
    assert result.summary.num_offered == 22
    assert result.summary.offered_per_s == pytest.approx(22 / 3)
    assert result.phases["a"].offered_per_s == pytest.approx(10.0)


def test_a_closed_phase_waits_for_what_went_before_and_stays_out_of_the_open_figures() -> None:
    phases = [phase(name="o", arrival=OPEN, duration_s=1), phase(name="c", arrival=CLOSED, duration_s=1)]
    result = run(lambda: FakeClient(lambda _: 0.5), phases=phases)
    closed = [record for record in result.records if record.phase == "c"]
    # The last open request is due at 0.9 s and answered at 1.4 s.
    assert closed[0].sent_at_s == pytest.approx(1.4 + LEAD_S)
    assert (len(closed), result.summary.num_offered, result.phases["c"].num_offered) == (4, 10, 4)
    assert result.phases["c"].throughput_per_s == pytest.approx(4.0)
    assert [record.index for record in result.records] == list(range(14))


def test_a_closed_phase_may_end_after_a_number_of_requests() -> None:
    phases = [phase(arrival={**CLOSED, "num_requests": 10}, duration_s=100)]
    result = run(lambda: FakeClient(lambda _: 0.5), phases=phases)
    (window,) = result.windows
    assert len(result.records) == 10
    assert window.end_s - window.start_s == pytest.approx(2.5)
    assert result.summary.throughput_per_s == pytest.approx(4.0)


def test_a_phase_keeps_its_length_even_if_nothing_is_due_at_its_end() -> None:
    arrival = {"kind": "trace", "times_s": [0.0]}
    phases = [phase(name="o", arrival=arrival, duration_s=9), phase(name="c", arrival=CLOSED, duration_s=1)]
    result = run(lambda: FakeClient(lambda _: 0.5), phases=phases)
    assert result.windows[1].start_s == pytest.approx(9.0)


def test_a_phase_in_which_nothing_is_due_is_a_phase_without_figures() -> None:
    phases = [phase(name="o", arrival={"kind": "trace", "times_s": [5.0]}, duration_s=1)]
    result = run(lambda: FakeClient(lambda _: 0.5), phases=phases)
    assert (result.records, result.summary.num_offered, result.summary.ok_share) == ((), 0, None)


def test_a_stopped_run_keeps_its_records_and_does_not_pass() -> None:
    phases = [phase(name="o", arrival=OPEN, duration_s=100), phase(name="c", arrival=CLOSED, duration_s=1)]
    result = run(lambda: FakeClient(lambda _: 0.1), stop_at_s=5.0, phases=phases)
    assert 45 <= len(result.records) <= 50
    assert (result.was_stopped, result.is_passed) == (True, False)
    assert {record.phase for record in result.records} == {"o"}


def test_the_client_is_closed_even_if_it_cannot_start() -> None:
    class Unreachable(FakeClient):
        async def start(self) -> None:
            raise TargetError("nobody there")

    client = Unreachable(lambda _: 0.0)
    with pytest.raises(TargetError):
        run(lambda: client)
    assert client.is_closed


def test_objectives_are_judged_by_the_figures() -> None:
    phases = [phase(arrival={"kind": "uniform", "rate_per_s": 100}, duration_s=10)]
    slo = {"deadline_ms": 100, "min_good_share": 0.95, "max_p50_ms": 60, "max_p99_ms": 60, "max_failed_share": 0.01}

    def failing(num_bad: int) -> FakeClient:
        return FakeClient(lambda _: 0.05, outcome=lambda k: Outcome.SERVER_ERROR if k < num_bad else Outcome.OK)

    assert run(lambda: failing(5), phases=phases, slo=slo).is_passed
    verdicts = {check.name: check.is_passed for check in run(lambda: failing(15), phases=phases, slo=slo).slo}
    assert verdicts == {"min_good_share": True, "max_failed_share": False, "max_p50_ms": True, "max_p99_ms": False}


def test_an_objective_that_the_sample_is_too_small_for_is_not_shown_and_so_not_passed() -> None:
    slo = Slo(deadline_ms=100, max_p99_ms=1000, max_generator_lag_p99_ms=1)
    checks = list(check_slo(slo, summarise([make_record(i) for i in range(661)])))
    assert [check.is_passed for check in checks] == [False, False]
    assert checks[0].value == "661 samples; p99 needs 662"
    assert all(check.is_passed for check in check_slo(slo, summarise([make_record(i) for i in range(662)])))


def test_an_objective_without_any_request_is_not_passed() -> None:
    slo = Slo(deadline_ms=100, min_good_share=0.0, max_failed_share=1.0)
    assert [check.is_passed for check in check_slo(slo, summarise([], deadline_s=0.1))] == [False, False]


def test_lag_has_no_meaning_in_a_closed_loop_and_is_not_passed_there() -> None:
    records = [replace(make_record(i), scheduled_at_s=None) for i in range(700)]
    (check,) = check_slo(Slo(deadline_ms=1, max_generator_lag_p99_ms=1), summarise(records))
    assert (check.is_passed, check.value) == (False, "not defined in a closed loop")


def test_an_accepted_bad_input_fails_the_run_unless_the_scenario_allows_it() -> None:
    summary = summarise([make_record(0), make_record(1, expects_error=True)])
    (check,) = check_slo(Slo(deadline_ms=1), summary)
    assert (check.name, check.is_passed) == ("are_bad_inputs_refused", False)
    assert list(check_slo(Slo(deadline_ms=1, are_bad_inputs_refused=False), summary)) == []
    refused = make_record(1, expects_error=True, outcome=Outcome.CLIENT_ERROR)
    assert next(check_slo(Slo(deadline_ms=1), summarise([refused]))).is_passed


def test_every_surface_of_the_mix_gets_its_client() -> None:
    surfaces = get_args(SurfaceName)
    scenario = parse_scenario(minimal(mix=[{"surface": surface} for surface in surfaces]), source="x")
    client = make_clients(scenario, {})
    for item in build_load(scenario)[0].payloads:
        assert client.prepare(item).request_bytes > 20


def test_settled_memory_is_given_back() -> None:
    before = gc.get_freeze_count()
    with settled_memory():
        assert gc.get_freeze_count() > before
    assert gc.get_freeze_count() == 0
