"""Alerts and dashboard speak only of metrics, labels and error codes that the service has."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
import yaml
from prometheus_client import REGISTRY, Counter, Gauge, Histogram

from schedulers.policies import guard
from serving import errors
from serving.config import from_mapping
from serving.telemetry import events, metrics
from tests.deploy.conftest import REPOSITORY
from tests.deploy.render import Manifest

MONITORING = REPOSITORY / "deploy" / "components" / "monitoring"
metrics.recorded_events()  # importing the table registers what is in it
_METRICS = [
    metric
    for metric in REGISTRY._collector_to_names
    if isinstance(metric, Counter | Gauge | Histogram) and metric._name.startswith("vireo_")
]
# Metric, as it is exported -> its labels, from the code. Histograms are named without the suffix that Prometheus adds.
COUNTERS_AND_GAUGES = {
    f"{metric._name}_total" if isinstance(metric, Counter) else metric._name: set(metric._labelnames)
    for metric in _METRICS
    if isinstance(metric, Counter | Gauge)
}
HISTOGRAMS = {metric._name: set(metric._labelnames) for metric in _METRICS if isinstance(metric, Histogram)}
SERIES = COUNTERS_AND_GAUGES | {
    f"{name}{suffix}": labels | ({"le"} if suffix == "_bucket" else set())
    for name, labels in HISTOGRAMS.items()
    for suffix in ("_bucket", "_sum", "_count")
}
# Values that a label may have, where an expression picks some.
VALUES = {
    ("vireo_chat_kv_blocks", "kind"): {"used", "total"},
    ("vireo_chat_ended_early_total", "reason"): {"cancelled"},
    ("vireo_guard_verdicts_total", "action"): {str(action) for action in guard.Action},
    ("vireo_guard_verdicts_total", "mode"): {str(mode) for mode in guard.Mode},
    ("vireo_image_fetches_total", "outcome"): {"ok"},
    ("vireo_requests_total", "outcome"): {"ok", "partial"},
    ("vireo_video_jobs_ended_total", "outcome"): {"completed", "cancelled"},
    ("vireo_video_jobs", "state"): {"held", "queued"},
}
# Added by Prometheus when it scrapes a pod.
SCRAPE_LABELS = {"namespace", "pod", "container"}


def rules() -> list[Manifest]:
    manifest = yaml.safe_load((MONITORING / "alerts.yaml").read_text(encoding="utf-8"))
    return [rule for group in manifest["spec"]["groups"] for rule in group["rules"]]


def alert_rules() -> list[Manifest]:
    return [rule for rule in rules() if "alert" in rule]


def recorded() -> dict[str, str]:
    """Series that the rules themselves make -> how."""
    return {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}


def dashboard() -> Manifest:
    loaded = json.loads((MONITORING / "dashboards" / "vireo.json").read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def expressions() -> Iterator[tuple[str, str]]:
    for rule in rules():
        made = rule["expr"]
        for name, how in recorded().items():  # the same, spelt out
            made = re.sub(rf"(?<![\w:]){re.escape(name)}(?!\w)", f"({how})", made)
        yield rule.get("alert") or rule["record"], made
    for panel in dashboard()["panels"]:
        yield from ((panel["title"], target["expr"]) for target in panel["targets"])


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_an_expression_names_known_series_and_labels(where: str, expression: str) -> None:
    names = re.findall(r"\bvireo_\w+", expression)
    assert names, where
    assert set(names) <= set(SERIES)
    known = set.union(*(SERIES[name] for name in names)) | SCRAPE_LABELS
    grouped = [
        label.strip() for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression) for label in group.split(",")
    ]
    matched = re.findall(r"[{,](\w+)(?:=~|!~|!=|=)\"", expression)
    assert set(grouped + matched) <= known
    assert expression.count("(") == expression.count(")")
    assert expression.count("{") == expression.count("}")


def test_what_the_code_exports_is_what_the_expressions_are_held_against() -> None:
    exported = exposition_of_a_fresh_process()
    assert len(COUNTERS_AND_GAUGES) > 20
    assert len(HISTOGRAMS) > 8
    assert {name for name in (*COUNTERS_AND_GAUGES, *HISTOGRAMS) if f"# TYPE {name} " not in exported} == set()
    kinds = re.findall(r'vireo_chat_kv_blocks\{kind="(\w+)"', exported)
    assert set(kinds) == VALUES["vireo_chat_kv_blocks", "kind"]


def exposition_of_a_fresh_process() -> str:
    """Return the text of /metrics: names there, not in the code, are what Prometheus sees."""
    code = (
        "from serving.replica.chat.base import EngineStats\n"
        "from serving.telemetry import events, metrics\n"
        "from serving.telemetry.exposition import exposition\n"
        "metrics.record(events.ChatEngineCounted('a', EngineStats(), EngineStats()))\n"
        "print(exposition(names_tenants=True)[0].decode())"
    )
    env = {name: value for name, value in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_a_value_that_an_expression_picks_is_one_that_the_label_can_have(where: str, expression: str) -> None:
    codes = _codes_below(errors.ServingError) | {errors.ServingError.code}
    for name, matchers in re.findall(r"\b(vireo_\w+)\{([^}]*)\}", expression):
        for label, pattern in re.findall(r"(\w+)(?:=~|!~|!=|=)\"([^\"]*)\"", matchers):
            if "$" not in pattern:
                known = VALUES[name, label] | (codes if label in {"reason", "outcome"} else set())
                assert set(pattern.split("|")) <= known, where


def test_every_metric_is_on_the_dashboard() -> None:
    shown = " ".join(target["expr"] for panel in dashboard()["panels"] for target in panel["targets"])
    assert [name for name in (*COUNTERS_AND_GAUGES, *HISTOGRAMS) if name not in shown] == []


def test_the_error_alerts_count_the_codes_that_are_the_services_own_fault() -> None:
    own = {errors.ServingError.code} | _codes_below(errors.BackendError)
    let_in = {events.OK, events.PARTIAL, errors.DeadlineExceeded.code} | own
    for name, how in recorded().items():
        counted, among = (set(pattern.split("|")) for pattern in re.findall(r'outcome=~?"([^"]+)"', how))
        assert counted == (own if ":vireo_failed_requests:" in name else {errors.DeadlineExceeded.code})
        assert among == let_in, "a refusal is neither, and must not make either look rare"


@pytest.mark.parametrize(("objective", "allowed"), [("failed_requests", 0.001), ("late_requests", 0.01)])
def test_an_objective_is_watched_over_several_windows(objective: str, allowed: float) -> None:
    series = rf"namespace_model:vireo_{objective}:ratio_rate(\w+)"
    burns = [rule for rule in alert_rules() if re.search(series, rule["expr"])]
    seen = {}
    for rule in burns:
        pairs = re.findall(series + r" > ([\d.]+) \* ([\d.]+)", rule["expr"])
        assert len(pairs) == 2, "a long window says that it matters, a short one that it goes on"
        (long, factor, share), (short, same_factor, same_share) = pairs
        assert (factor, float(share)) == (same_factor, allowed) == (same_factor, float(same_share))
        seen[long, short] = float(factor), rule["labels"]["severity"]
    assert seen == {
        ("1h", "5m"): (14.4, "critical"),
        ("6h", "30m"): (6.0, "critical"),
        ("3d", "6h"): (1.0, "warning"),
    }


def test_a_recorded_ratio_is_taken_over_the_window_in_its_name() -> None:
    assert len(recorded()) == 10
    for name, how in recorded().items():
        assert set(re.findall(r"\[(\w+)\]", how)) == {name.rpartition("ratio_rate")[2]}


def _codes_below(error: type[errors.ServingError]) -> set[str]:
    codes = set() if error is errors.BackendError else {error.code}
    return codes.union(*(_codes_below(child) for child in error.__subclasses__())) | (
        {error.code} if "code" in vars(error) else set()
    )


def test_every_alert_says_what_to_do() -> None:
    for rule in alert_rules():
        assert set(rule["annotations"]) == {"summary", "action"}
        assert rule["labels"]["severity"] in {"warning", "critical"}


def test_panels_do_not_overlap_and_have_own_ids() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_scraping_is_possible_only_where_monitors_and_policy_name_the_same_ports(
    rendered: dict[str, list[Manifest]],
) -> None:
    (service,) = [m for m in rendered["prod"] if m["kind"] == "RayService"]
    (workers,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    containers = workers["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for container in containers for port in container["ports"]}
    (monitor,) = [m for m in rendered["prod"] if m["kind"] == "PodMonitor" and m["metadata"]["name"] == "vireo-workers"]
    scraped = {ports[endpoint["port"]] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
    (policy,) = [
        m for m in rendered["prod"] if m["kind"] == "NetworkPolicy" and m["metadata"]["name"] == "vireo-scrape"
    ]
    assert scraped == {port["port"] for port in policy["spec"]["ingress"][0]["ports"]}


def test_metrics_have_a_port_apart_from_the_one_that_callers_reach(
    rendered: dict[str, list[Manifest]],
) -> None:
    (service,) = [m for m in rendered["prod"] if m["kind"] == "RayService"]
    (workers,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    ray, exporter = workers["template"]["spec"]["containers"]
    assert from_mapping({"profile": "cluster"}).http.metrics is False
    (monitor,) = [m for m in rendered["prod"] if m["kind"] == "PodMonitor" and m["metadata"]["name"] == "vireo-workers"]
    assert "serve" not in {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
    for policy in (m for m in rendered["prod"] if m["kind"] == "NetworkPolicy"):
        for rule in policy["spec"].get("ingress", []):
            if {"namespaceSelector": {"matchLabels": {"vireo.dev/may-scrape": "true"}}} in rule["from"]:
                served = {p["containerPort"] for p in ray["ports"] if p["name"] in ("serve", "serve-grpc")}
                assert not served & {port["port"] for port in rule["ports"]}
    # The exporter reads what the processes of its pod write, and has to see whether they live.
    (config_map,) = [m for m in rendered["prod"] if m["kind"] == "ConfigMap" and "vireo.yaml" in m["data"]]
    folder = f"{yaml.safe_load(config_map['data']['vireo.yaml'])['run_dir']}/metrics"
    assert exporter["command"][:3] == ["vireo", "metrics", folder]
    assert "--tenants" in exporter["command"], "there are panels by tenant"
    assert {"name": "run", "mountPath": "/run/vireo"} in exporter["volumeMounts"]
    assert {"name": "run", "mountPath": "/run/vireo"} in ray["volumeMounts"]
    assert workers["template"]["spec"]["shareProcessNamespace"] is True
    assert (exporter["image"], exporter["securityContext"]) == (ray["image"], ray["securityContext"])
