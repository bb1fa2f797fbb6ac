"""The golden instrument test: what the load generator says, held against what is known to have happened.

Expected values never come from the code under test: they come from queueing arithmetic (Lindley's recursion), from
numpy and from the log of a server that keeps its own time. On the virtual clock figures agree exactly; over real
sockets only the order of events is asserted, because that alone does not depend on the machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from typer.testing import CliRunner

from loadtest import Outcome, Payload, Record, RunControl, RunLimits, run_closed_loop, run_open_loop, summarise
from loadtest.arrivals import poisson, uniform
from loadtest.clients.fake import FakeClient
from loadtest.clients.http_classify import HttpClassifyClient
from loadtest.clock import LoopClock
from loadtest.fake_server import FakeServer, Plan
from loadtest.selfcheck import check_generator, selfcheck_table
from serving.cli.loadtest_commands import register
from serving.client.exits import Exit
from tests.support.virtual_loop import run_virtual

PAYLOADS = [Payload(images=(b"picture",), expected_labels=("7",))]
ROOT = Path(__file__).parents[2]


def lindley(arrivals_s: np.ndarray, service_s: np.ndarray) -> np.ndarray:
    """Latency of each request at one server that serves in order of arrival: wait(k+1) = max(0, wait + service -
    gap)."""
    waits = [0.0]
    for gap, service in zip(np.diff(arrivals_s), service_s, strict=False):
        waits.append(max(0.0, waits[-1] + service - gap))
    return np.array(waits) + service_s


def virtual_open_loop(client: Callable[[], FakeClient], times_s: np.ndarray) -> list[Record]:
    async def work() -> list[Record]:
        return await run_open_loop(
            client(), PAYLOADS, times_s.tolist(), limits=RunLimits(timeout_s=1e6), control=RunControl(clock=LoopClock())
        )

    return run_virtual(work())


def test_latencies_and_their_percentiles_are_those_of_the_queue_that_was_built() -> None:
    times_s = np.array([time for time, _ in zip(poisson(9.0, seed=3), range(5000), strict=False)])
    service_s = np.random.default_rng(4).gamma(2.0, 0.05, 5000)
    expected_s = lindley(times_s, service_s)
    records = virtual_open_loop(lambda: FakeClient(lambda k: float(service_s[k]), num_servers=1), times_s)
    measured_s = np.array([record.latency_from_scheduled_s for record in records])
    np.testing.assert_allclose(measured_s, expected_s, rtol=0, atol=1e-6)

    summary = summarise(records, deadline_s=1.0)
    for q in (0.5, 0.9, 0.99):
        theirs = np.quantile(expected_s, q, method="inverted_cdf")
        assert summary.latency.quantile(q).value_s == pytest.approx(theirs, abs=1e-6)
    assert summary.num_good == int((expected_s <= 1.0).sum())
    assert summary.latency.quantile(0.999).refusal == "5000 samples; p99.9 needs 6636"


def test_known_failures_are_all_found_and_all_in_the_denominator() -> None:
    def outcome(k: int) -> Outcome:
        return Outcome.SERVER_ERROR if k % 50 == 7 else Outcome.REJECTED if k % 100 == 3 else Outcome.OK

    times_s = np.arange(1000) / 100
    summary = summarise(virtual_open_loop(lambda: FakeClient(lambda _: 0.01, outcome=outcome), times_s), deadline_s=1.0)
    assert summary.outcomes == {"ok": 970, "rejected": 10, "server_error": 20}
    assert summary.good_share is not None
    assert summary.good_share.value == 0.97
    assert summary.latency.quantile(0.95).value_s == pytest.approx(0.01)
    assert summary.latency.quantile(0.99).refusal == "30 of 1000 failed, so p99 is a failure"


def test_a_stall_shows_in_an_open_loop_and_hides_in_a_closed_one() -> None:
    """Coordinated omission: one server, 10 ms each, that stands still for 2 s. At 50 requests/s the stall meets 100
    requests in the open loop, which have to wait for 1 s on average, and exactly one in the closed loop."""
    service = np.full(3000, 0.010)
    service[1000] = 2.0
    open_records = virtual_open_loop(
        lambda: FakeClient(lambda k: float(service[k]), num_servers=1), np.arange(3000) / 50
    )
    closed_records = run_virtual(
        run_closed_loop(
            FakeClient(lambda k: float(service[k]), num_servers=1),
            PAYLOADS,
            1,
            num_requests=3000,
            control=RunControl(clock=LoopClock()),
        )
    )
    expected_s = lindley(np.arange(3000) / 50, service)
    open_summary, closed_summary = summarise(open_records, deadline_s=0.1), summarise(closed_records, deadline_s=0.1)
    assert open_summary.latency.quantile(0.99).value_s == pytest.approx(
        np.quantile(expected_s, 0.99, method="higher"), abs=0.02
    )
    assert (open_summary.latency.quantile(0.99).value_s or 0.0) > 1.0
    assert open_summary.num_good == int((expected_s <= 0.1 + 1e-9).sum())
    assert closed_summary.latency.quantile(0.99).value_s == pytest.approx(0.010)
    assert closed_summary.num_good == 2999


def test_a_generator_that_stalls_blames_itself_and_not_the_server() -> None:
    """The loop of the generator stands still for 3 s: latency from scheduled grows, latency from sent does not, lag
    shows it."""

    async def work() -> list[Record]:
        loop = asyncio.get_running_loop()

        def stall() -> None:
            loop.now_s += 3.0  # type: ignore[attr-defined]

        loop.call_at(2.0, stall)
        return await run_open_loop(
            FakeClient(lambda _: 0.01),
            PAYLOADS,
            uniform(100.0),
            num_requests=1000,
            control=RunControl(clock=LoopClock()),
        )

    summary = summarise(run_virtual(work()))
    assert summary.latency_from_scheduled is not None
    assert summary.generator_lag is not None
    assert summary.latency_from_scheduled.max_s == pytest.approx(3.01, abs=0.011)
    assert summary.latency_from_sent.quantile(0.99).value_s == pytest.approx(0.01)
    assert summary.generator_lag.max_s == pytest.approx(3.0, abs=0.011)
    assert any("generator was late" in warning for warning in summary.warnings)


async def over_sockets(plan: Plan, *, rate: float, num: int, **limits: float) -> tuple[list[Record], FakeServer, float]:
    """Run against a real server; returns its log and the epoch of the records on the shared clock."""
    server = FakeServer(plan)
    await server.start()
    client = HttpClassifyClient(server.url)
    await client.start()
    loop = asyncio.get_running_loop()
    epoch_s = loop.time()
    records = await run_open_loop(
        client,
        PAYLOADS,
        uniform(rate),
        num_requests=num,
        limits=RunLimits(timeout_s=limits.get("timeout_s", 20.0)),
        control=RunControl(epoch_s=epoch_s),
    )
    await client.close()
    await server.stop()
    return records, server, epoch_s


async def test_over_sockets_every_record_encloses_what_the_server_logged() -> None:
    def service_s(k: int) -> float:
        return 0.02 if k % 3 else 0.001

    records, server, epoch_s = await over_sockets(Plan(service_s=service_s), rate=200.0, num=200)
    assert [record.outcome for record in records] == [Outcome.OK] * 200
    assert len(server.log) == 200
    # One request in flight may overtake another on its way: compare as sets in the order of sending.
    sent = sorted(record.sent_at_s or 0.0 for record in records)
    for sent_s, entry in zip(sent, server.log, strict=True):
        assert epoch_s + sent_s <= entry.received_at_s
    for record in records:
        assert record.scheduled_at_s is not None
        assert record.sent_at_s is not None
        assert record.first_chunk_at_s is not None
        assert record.done_at_s is not None
        assert record.scheduled_at_s <= record.sent_at_s <= record.first_chunk_at_s <= record.done_at_s
    assert all(record.num_correct == 1 and record.server is not None for record in records)
    fastest = min(record.latency_from_sent_s or 0.0 for record in records)
    assert fastest >= 0.001
    slow = sum((record.latency_from_sent_s or 0.0) >= 0.02 for record in records)
    assert slow >= sum(k % 3 != 0 for k in range(200))


async def test_over_sockets_planned_failures_have_the_outcomes_planned() -> None:
    statuses = {3: 500, 5: 429, 7: 503, 9: 404, 11: 504, 13: 0}
    records, _, _ = await over_sockets(Plan(status=lambda k: statuses.get(k, 200), num_servers=1), rate=100.0, num=20)
    counts = summarise(records).outcomes
    assert counts == {
        "ok": 14,
        "server_error": 1,
        "rejected": 1,
        "unavailable": 1,
        "client_error": 1,
        "deadline_exceeded": 1,
        "connection_error": 1,
    }
    assert summarise(records).error_codes["planned_500"] == 1


async def test_over_sockets_whoever_waited_in_a_stall_is_recorded_as_waiting_from_its_schedule() -> None:
    stall_s = 0.4
    records, server, epoch_s = await over_sockets(
        Plan(service_s=lambda k: stall_s if k == 5 else 0.0, num_servers=1), rate=100.0, num=60
    )
    stall_end_s = server.log[5].replied_at_s
    assert stall_end_s is not None
    num_waiting = sum(entry.received_at_s < stall_end_s <= (entry.replied_at_s or 0.0) for entry in server.log)
    assert num_waiting > 1
    waited = [
        record
        for record in records
        if (record.scheduled_at_s or 0.0) + epoch_s < stall_end_s <= (record.done_at_s or 0.0) + epoch_s
    ]
    assert len(waited) >= num_waiting  # those on their way when it ended are recorded too
    assert max(record.latency_from_scheduled_s or 0.0 for record in waited) >= stall_s


async def test_over_sockets_a_server_that_never_answers_times_out() -> None:
    records, _, _ = await over_sockets(Plan(service_s=lambda _: 60.0), rate=100.0, num=5, timeout_s=0.2)
    assert [record.outcome for record in records] == [Outcome.TIMEOUT] * 5
    assert all((record.latency_from_sent_s or 0.0) >= 0.2 for record in records)


async def test_the_self_check_measures_every_rate_and_loses_nothing() -> None:
    rows = await check_generator([100.0, 300.0], duration_s=1.0)
    assert [row.rate_per_s for row in rows] == [100.0, 300.0]
    for row in rows:
        assert row.summary.num_offered == row.summary.num_ok > 50
        assert row.summary.generator_lag is not None
        assert (row.summary.generator_lag.min_s or 0.0) >= 0.0
        assert row.processor_s_per_request > 0.0
    assert len(selfcheck_table(rows).rows) == 2


@contextmanager
def server_process() -> Iterator[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-m", "loadtest.fake_server"], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    ) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def target() -> Iterator[str]:
    with server_process() as url:
        yield url


def write_scenario(path: Path, **fields: object) -> str:
    data = {
        "name": "golden",
        "mix": [{"surface": "http_classify"}],
        "phases": [{"name": "main", "arrival": {"kind": "poisson", "rate_per_s": 100}, "duration_s": 1}],
        "slo": {"deadline_ms": 10_000, "min_good_share": 0.9},
        **fields,
    }
    path.write_text(yaml.safe_dump(data))
    return str(path)


def call_cli(*arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    register(app)
    result = CliRunner().invoke(app, ["loadtest", *arguments], env={"COLUMNS": "200"})
    return result.exit_code, result.output


def test_the_command_writes_its_report_and_ends_with_0_if_all_was_shown(target: str, tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path / "s.yaml")
    code, output = call_cli(scenario, "--url", target, "--out", str(tmp_path / "out"), "--seed", "5")
    assert code == 0, output
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["scenario"]["seed"], summary["scenario"]["target"]["http_url"]) == (5, target)
    assert summary["summary"]["outcomes"] == {"ok": summary["summary"]["num_offered"]}
    assert summary["summary"]["server"]["energy_j"]["value"] == 0.5  # what the fake server claims
    assert {"report.html", "records.jsonl"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_the_command_ends_with_1_if_an_objective_was_not_shown(target: str, tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path / "s.yaml", slo={"deadline_ms": 10_000, "max_p99_ms": 10_000})
    code, output = call_cli(scenario, "--url", target, "--out", str(tmp_path / "out"))
    assert code == Exit.FAILED
    assert "p99 needs 662" in output
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize(
    ("fields", "named", "exit_code"),
    [
        ({"sead": 1}, "sead", Exit.USAGE),
        (
            {"tenants": [{"name": "default", "api_key_env": "NO_SUCH_VARIABLE_HERE"}]},
            "NO_SUCH_VARIABLE_HERE",
            Exit.USAGE,
        ),
        ({"target": {"http_url": "http://127.0.0.1:9"}}, "no HTTP server answers", Exit.UNREACHABLE),
    ],
)
def test_the_command_says_why_the_test_cannot_be_made(
    tmp_path: Path, fields: dict[str, object], named: str, exit_code: Exit
) -> None:
    code, output = call_cli(write_scenario(tmp_path / "s.yaml", **fields), "--out", str(tmp_path / "out"))
    assert code == exit_code
    assert named in output
    assert not (tmp_path / "out").exists()


def test_repetitions_are_reported_apart_and_their_memory_together(target: str, tmp_path: Path) -> None:
    phases = [{"name": "main", "arrival": {"kind": "closed", "concurrency": 2, "num_requests": 20}, "duration_s": 30}]
    arguments = [write_scenario(tmp_path / "s.yaml", phases=phases), "--url", target, "--repeat", "3"]
    arguments += ["--watch-pid", str(os.getpid()), "--out", str(tmp_path / "out")]
    code, output = call_cli(*arguments, "--max-growth-mib", "10000", "--vary")
    assert code == 0, output
    folders = [tmp_path / "out" / f"repetition-00{number}" for number in (1, 2, 3)]
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    assert [summary["scenario"]["seed"] for summary in summaries] == [0, 1, 2]
    assert [summary["summary"]["num_ok"] for summary in summaries] == [20, 20, 20]
    page = (tmp_path / "out" / "repetitions.html").read_text()
    for title in ("Repetitions", "Memory of the server after each repetition", "Growth from repetition 2 to 3"):
        assert title in page
        assert title in output
    assert call_cli(*arguments, "--max-growth-mib", "-10000")[0] == Exit.FAILED  # nothing shrinks by as much


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--repeat", "3", "--max-growth-mib", "1"], "--watch-pid"),
        (["--repeat", "2", "--max-growth-mib", "1", "--watch-pid", "1"], "--repeat > 2"),
        (["--watch-pid", "999999999"], "process 999999999 is not there"),
    ],
)
def test_memory_that_cannot_be_watched_is_told_before_the_first_request(
    target: str, tmp_path: Path, options: list[str], named: str
) -> None:
    code, output = call_cli(write_scenario(tmp_path / "s.yaml"), "--url", target, *options)
    assert code == Exit.USAGE
    assert named in output
    assert "sending" not in output


def test_an_interrupt_ends_the_run_early_and_keeps_the_report(target: str, tmp_path: Path) -> None:
    phases = [{"name": "long", "arrival": {"kind": "uniform", "rate_per_s": 50}, "duration_s": 60}]
    scenario = write_scenario(tmp_path / "s.yaml", phases=phases)
    command = [
        sys.executable,
        "-m",
        "serving.cli",
        "loadtest",
        scenario,
        "--url",
        target,
        "--out",
        str(tmp_path / "out"),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("sending"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stdout.read()
    assert process.returncode == Exit.INTERRUPTED, rest
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["was_stopped"] is True
    assert summary["summary"]["num_offered"] < 3000
