"""Metrics over several processes, logs without secrets."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import structlog
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from serving.errors import QueueFull
from serving.telemetry import events, exposition, logs, metrics
from serving.telemetry.metrics import record

ROOT = Path(__file__).parents[3]

# -- metrics ---------------------------------------------------------------------------------------------------------


class Processes:
    """Processes that count into one folder."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack

    def start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.metrics_process", str(self._folder)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self._stack.callback(stop, process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process


def stop(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Processes]:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    with ExitStack() as stack:
        yield Processes(tmp_path, stack)


def scrape() -> dict[tuple[str, str], float]:
    """(sample name, its label values) -> value."""
    text, _ = exposition.exposition(names_tenants=True)
    return {
        (sample.name, ",".join(sample.labels[name] for name in sorted(sample.labels) if name != "le")): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


REQUESTS = ("vireo_requests_total", "m,ok,http_classify,t")
IN_FLIGHT = ("vireo_in_flight_requests", "http_classify")
BREAKER = ("vireo_breaker_state", "redis")


def test_processes_add_up_and_a_killed_one_leaves_only_its_counts(processes: Processes) -> None:
    first, second = processes.start(), processes.start()
    both = scrape()
    assert both[REQUESTS] == 2
    assert both[IN_FLIGHT] == 4
    assert both[BREAKER] == 2
    assert both["vireo_request_seconds_count", "m,http_classify"] == 2

    first.kill()
    first.wait()
    one = scrape()
    assert one[REQUESTS] == 2  # counters never go back
    assert one[IN_FLIGHT] == 2
    second.kill()
    second.wait()
    none = scrape()
    assert none[REQUESTS] == 2
    assert none.get(IN_FLIGHT, 0) == 0
    assert BREAKER not in none


PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;"
    "q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)
"""What Prometheus 3 accepts."""


@pytest.mark.parametrize(
    ("accept", "is_open"),
    [
        (PROMETHEUS, True),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text; version=1.0.0", True),
        ("application/openmetrics-text; version=0.0.1", False),
        ("application/openmetrics-text; version=x", False),
        ("application/openmetrics-text ; version=0.0.1", False),
        ("text/plain; version=0.0.4", False),
        ("*/*", False),
        ("", False),
    ],
)
def test_scraper_gets_the_format_that_it_accepts(processes: Processes, accept: str, is_open: bool) -> None:
    processes.start()
    text, content_type = exposition.exposition(accept)
    assert content_type.partition(";")[0] == ("application/openmetrics-text" if is_open else "text/plain")
    parse = openmetrics_families if is_open else text_string_to_metric_families
    assert "vireo_requests" in {family.name for family in parse(text.decode())}


def test_what_is_counted_by_tenant_is_added_up(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    counter = Counter("vireo_some", "Some.", ("model", "tenant"), registry=registry)
    counter.labels("m", "one").inc(2)
    counter.labels("m", "other").inc(3)
    counter.labels("n", "one").inc(4)
    Gauge("vireo_other", "Other.", registry=registry).set(5)
    shown = exposition.node_registry(registry)
    assert shown.get_sample_value("vireo_some_total", {"model": "m"}) == 5
    assert shown.get_sample_value("vireo_some_total", {"model": "n"}) == 4
    assert shown.get_sample_value("vireo_other") == 5
    named = exposition.node_registry(registry, names_tenants=True)
    assert named.get_sample_value("vireo_some_total", {"model": "m", "tenant": "other"}) == 3


def test_only_counters_are_by_tenant() -> None:
    """They can be added up; a histogram could, too, but a gauge need not be a sum."""
    by_tenant = {metric.name: metric.type for metric in REGISTRY.collect() if "tenant" in _labels(metric.name)}
    assert len(by_tenant) >= 4
    assert set(by_tenant.values()) == {"counter"}


def _labels(name: str) -> tuple[str, ...]:
    return tuple(getattr(REGISTRY._names_to_collectors[name], "_labelnames", ()))


def test_command_serves_the_metrics_of_a_node_on_a_port_of_its_own(processes: Processes, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "serving.cli", "metrics", str(tmp_path), "--port", "0", "--tenants"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
        assert server.stdout is not None
        said = server.stdout.readline()
        url = f"http://{said.split()[-1]}/metrics"
        counting = processes.start()  # after the server, as in a pod
        text = httpx.get(url).text
        assert 'vireo_requests_total{model="m",outcome="ok",surface="http_classify",tenant="t"} 1.0' in text
        assert 'vireo_in_flight_requests{surface="http_classify"} 2.0' in text
        assert "python_info" not in text, "what is served is the node's, not the server's own"
        counting.kill()
        counting.wait()
        assert 'vireo_in_flight_requests{surface="http_classify"}' not in httpx.get(url).text
        server.terminate()
        assert server.wait() == 0


def test_killed_process_that_nobody_has_waited_for_is_dead_too(processes: Processes) -> None:
    process = processes.start()
    assert scrape()[IN_FLIGHT] == 2
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and still a zombie
    assert scrape().get(IN_FLIGHT, 0) == 0


def test_most_recent_gauges_of_the_dead_do_not_outlive_them(tmp_path: Path) -> None:
    """vLLM's: its replica died with a request waiting, and one request waited from then on."""
    gone = tmp_path / f"gauge_mostrecent_{2**22 + 1}.db"
    alive = tmp_path / f"gauge_mostrecent_{os.getpid()}.db"
    counter = tmp_path / f"counter_{2**22 + 1}.db"
    for path in (gone, alive, counter):
        path.touch()
    exposition.forget_dead_processes(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([alive, counter])


def test_two_scrapers_may_clean_up_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = 2**22 + 1  # above the largest pid that Linux gives
    path = tmp_path / f"gauge_livesum_{gone}.db"
    path.touch()
    glob = Path.glob

    def glob_then_lose(self: Path, pattern: str) -> list[Path]:
        found = list(glob(self, pattern))
        for each in found:
            each.unlink()
        return found

    monkeypatch.setattr(Path, "glob", glob_then_lose)
    exposition.forget_dead_processes(tmp_path)
    assert not path.exists()


def test_fetches_and_the_cache_of_processed_images_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    record(events.ImageFetched("ok", 1000, 0.25))
    record(events.ImageFetched("image_url_refused", 0, 0.5))
    for is_hit in (True, True, False):
        record(events.ImageLookedUp("test-chat", is_hit))
    record(events.ImagesHeld(70))
    record(events.ImagesHeld(50))
    after = scrape()
    assert after["vireo_image_fetches_total", "ok"] == after["vireo_image_fetches_total", "image_url_refused"] == 1
    assert after["vireo_image_fetch_bytes_total", ""] == 1000
    assert after["vireo_image_fetch_seconds_sum", ""] == 0.75
    assert after["vireo_processed_image_lookups_total", "test-chat,hit"] == 2
    assert after["vireo_processed_image_lookups_total", "test-chat,miss"] == 1
    assert after["vireo_processed_image_bytes", ""] == 50


def test_one_process_alone_needs_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    before = scrape().get(("vireo_exits_total", "2,test-model"), 0.0)
    for degraded in (False, True):
        record(events.SampleAnswered("test-model", 1, degraded, queue_s=0.003, compute_s=0.001))
    record(events.BatchRan("test-model", 0, 5, seconds=0.02, predicted_s=0.01))
    record(events.BatchRan("test-model", 0, 5, seconds=0.02, predicted_s=0.0))  # no prediction: no ratio
    after = scrape()
    assert after["vireo_exits_total", "2,test-model"] == before + 2
    assert after["vireo_degraded_total", "test-model,deadline"] == 1
    assert after["vireo_stage_batch_size_sum", "test-model,1"] == 10
    assert after["vireo_cost_ratio_sum", "test-model"] == 2.0
    assert after["vireo_cost_ratio_count", "test-model"] == 1
    assert after["vireo_queue_seconds_sum", "test-model"] == pytest.approx(0.006)


def test_predicted_and_actual_seconds_are_counted_by_kind_with_the_correction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    for predicted_s in (0.25, 0.0):  # without a prediction nothing is compared
        record(events.BatchRan("priced-model", 1, 5, seconds=0.5, predicted_s=predicted_s, correction=1.5))
    record(events.WorkPriced("priced-model", "step", predicted_s=1.0, actual_s=3.0, correction=2.0))
    record(events.WorkPriced("priced-model", "job", predicted_s=8.0, actual_s=4.0))
    after = scrape()
    predicted, actual, correction = (
        {kind: after.get((f"vireo_{name}", f"{kind},priced-model")) for kind in ("stage_2", "step", "job")}
        for name in ("predicted_seconds_total", "actual_seconds_total", "cost_correction_ratio")
    )
    assert predicted == {"stage_2": 0.25, "step": 1.0, "job": 8.0}
    assert actual == {"stage_2": 0.5, "step": 3.0, "job": 4.0}
    assert correction == {"stage_2": 1.5, "step": 2.0, "job": None}, "of whole jobs nothing is learnt"


def test_every_event_is_counted() -> None:
    kinds = {kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, events.Event)}
    assert kinds - {events.Event} == metrics.recorded_events()


def test_names_carry_the_project_and_a_unit_or_what_is_counted() -> None:
    units = (
        "_total",
        "_seconds",
        "_joules",
        "_bytes",
        "_size",
        "_ratio",
        "_requests",
        "_tokens",
        "_blocks",
        "_state",
        "_images",
        "_jobs",
        "_experts",
        "_balancedness",
        "_version",
    )
    ours = [family for family in REGISTRY.collect() if family.name.startswith("vireo_")]
    assert len(ours) > 10
    for family in ours:
        name = family.name + ("_total" if family.type == "counter" else "")
        assert name.endswith(units), name
        assert family.documentation.endswith("."), name


def test_energy_of_a_window_and_of_requests_add_up_in_metrics() -> None:
    def value(name: str, **labels: str) -> float:
        found = REGISTRY.get_sample_value(f"vireo_energy_{name}", {"model": "metered", **labels})
        assert found is not None, name
        return found

    window = {"metered_j": 100.0, "idle_j": 60.0, "elsewhere_j": 5.0, "carried_j": 2.0}
    record(events.EnergyMetered(model="metered", source="nvml", **window))
    for tenant, joules in (("a", 20.0), ("b", 13.0)):
        record(events.EnergySpent(model="metered", tenant=tenant, point="p", source="nvml", joules=joules))
    said = sum(value("joules_total", tenant=tenant, point="p", source="nvml") for tenant in "ab")
    parts = [value(name, source="nvml") for name in ("idle_joules_total", "elsewhere_joules_total", "carried_joules")]
    assert said + sum(parts) == value("metered_joules_total", source="nvml") == 100.0


def test_points_that_callers_make_up_do_not_make_series_without_end() -> None:
    for number in range(300):
        point = f"guidance_scale={number / 7}"
        record(events.EnergySpent(model="made_up", tenant="t", point=point, source="estimate", joules=1.0))
    (metric,) = [family for family in REGISTRY.collect() if family.name == "vireo_energy_joules"]
    mine = {
        sample.labels["point"]: sample.value
        for sample in metric.samples
        if sample.labels["model"] == "made_up" and sample.name.endswith("_total")
    }
    assert len(mine) <= 101
    assert sum(mine.values()) == 300.0
    assert mine["other"] >= 199.0


# -- logs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def _restore_logging() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


@pytest.mark.usefixtures("_restore_logging")
def test_log_is_one_json_object_per_line_with_the_request_id(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    with structlog.contextvars.bound_contextvars(request_id="r-1"):
        structlog.get_logger("a").info("served", seconds=0.25, model="m")
    (line,) = lines(capsys)
    assert line.items() >= {"event": "served", "request_id": "r-1", "level": "info", "seconds": 0.25}.items()
    assert line["timestamp"].endswith("Z")


@pytest.mark.usefixtures("_restore_logging")
def test_last_configuration_wins_for_loggers_already_used(capsys: pytest.CaptureFixture[str]) -> None:
    log = structlog.get_logger("b")
    logs.configure("info")
    log.info("one")
    logs.configure("error")
    log.info("two")
    log.error("three")
    assert [line["event"] for line in lines(capsys)] == ["one", "three"]


@pytest.mark.usefixtures("_restore_logging")
@pytest.mark.parametrize(
    "fields",
    [
        {"api_key": "S3CRET"},
        {"Authorization": "Bearer S3CRET"},
        {"X-Api-Key": "S3CRET"},
        {"password": "S3CRET"},
        {"headers": {"authorization": "S3CRET", "host": "h"}},
        {"calls": [{"token": "S3CRET"}]},
        {"image": "S3CRET"},
        {"payload": b"S3CRET"},
        {"payload": bytearray(b"S3CRET")},
        {"payload": memoryview(b"S3CRET")},
        {"nested": ({"x": [b"S3CRET"]},)},
    ],
    ids=str,
)
def test_secrets_and_content_are_not_written(fields: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    structlog.get_logger("c").info("call", **fields)
    text = capsys.readouterr().err
    assert "S3CRET" not in text
    assert "***" in text
    assert json.loads(text)["event"] == "call"


@pytest.mark.usefixtures("_restore_logging")
def test_pixels_are_not_written_and_numbers_are(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    array = np.full((2, 2, 3), 173, dtype=np.uint8)
    structlog.get_logger("d").info("call", decoded=array, share=np.float64(0.5), shape=array.shape, keys=None)
    (line,) = lines(capsys)
    del line["timestamp"]  # whose microseconds may hold any number
    assert "173" not in json.dumps(line)
    assert line["decoded"] == "***"
    assert line["share"] == 0.5
    assert line["shape"] == [2, 2, 3]


@pytest.mark.usefixtures("_restore_logging")
def test_masking_leaves_the_callers_objects_alone() -> None:
    headers = {"authorization": "x"}
    masked = logs.mask_secrets(None, "info", {"headers": headers})
    assert headers == {"authorization": "x"}
    assert masked == {"headers": {"authorization": "***"}}


@pytest.mark.usefixtures("_restore_logging")
def test_exception_is_part_of_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    try:
        raise QueueFull("full")
    except QueueFull:
        structlog.get_logger("e").exception("failed")
    (line,) = lines(capsys)
    assert "QueueFull: full" in line["exception"]


def test_every_level_of_the_configuration_is_known_to_logging() -> None:
    for level in ("debug", "info", "warning", "error"):
        assert level.upper() in logging.getLevelNamesMapping()
