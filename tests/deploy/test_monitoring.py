"""Alerts and dashboard speak only of metrics, labels and error codes that the service has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
import yaml
from prometheus_client import Counter, Gauge, Histogram

from serving import errors
from serving.telemetry import metrics
from tests.deploy.conftest import REPOSITORY
from tests.deploy.render import Manifest

MONITORING = REPOSITORY / "deploy" / "components" / "monitoring"
# Metric -> its labels. Histograms are named without the suffix that Prometheus adds.
COUNTERS_AND_GAUGES = {
    "vireo_requests_total": {"surface", "model", "tenant", "outcome"},
    "vireo_exits_total": {"model", "exit"},
    "vireo_cache_lookups_total": {"outcome"},
    "vireo_energy_joules_total": {"model", "tenant", "source"},
    "vireo_in_flight_requests": {"surface"},
    "vireo_breaker_state": {"store"},
    "vireo_rejections_total": {"reason"},
}
HISTOGRAMS = {
    "vireo_request_seconds": {"surface", "model"},
    "vireo_queue_seconds": {"model"},
    "vireo_compute_seconds": {"model"},
    "vireo_stage_batch_size": {"model", "stage"},
    "vireo_cost_ratio": {"model"},
}
SERIES = COUNTERS_AND_GAUGES | {
    f"{name}{suffix}": labels | ({"le"} if suffix == "_bucket" else set())
    for name, labels in HISTOGRAMS.items()
    for suffix in ("_bucket", "_sum", "_count")
}
# Added by Prometheus when it scrapes a pod.
SCRAPE_LABELS = {"namespace", "pod", "container"}


def alert_rules() -> list[Manifest]:
    manifest = yaml.safe_load((MONITORING / "alerts.yaml").read_text(encoding="utf-8"))
    return [rule for group in manifest["spec"]["groups"] for rule in group["rules"]]


def dashboard() -> Manifest:
    loaded = json.loads((MONITORING / "dashboards" / "vireo.json").read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def expressions() -> Iterator[tuple[str, str]]:
    yield from ((rule["alert"], rule["expr"]) for rule in alert_rules())
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
    matched = re.findall(r"[{,](\w+)=~?\"", expression)
    assert set(grouped + matched) <= known
    assert expression.count("(") == expression.count(")")
    assert expression.count("{") == expression.count("}")


def test_the_service_has_these_metrics_with_these_labels() -> None:
    defined = {
        f"{metric._name}_total" if isinstance(metric, Counter) else metric._name: set(metric._labelnames)
        for metric in vars(metrics).values()
        if isinstance(metric, Counter | Gauge | Histogram)
    }
    wanted = COUNTERS_AND_GAUGES | HISTOGRAMS
    assert {name: defined.get(name) for name in wanted} == wanted


def test_every_metric_is_on_the_dashboard() -> None:
    shown = " ".join(target["expr"] for panel in dashboard()["panels"] for target in panel["targets"])
    assert [name for name in (*COUNTERS_AND_GAUGES, *HISTOGRAMS) if name not in shown] == []


def test_the_error_alert_counts_the_codes_that_are_the_services_own_fault() -> None:
    (rule,) = [rule for rule in alert_rules() if rule["alert"] == "VireoErrorRatioHigh"]
    (pattern,) = re.findall(r'outcome=~"([^"]+)"', rule["expr"])
    assert set(pattern.split("|")) == {errors.ServingError.code} | _codes_below(errors.BackendError)


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
    ports = {p["name"]: p["containerPort"] for p in workers["template"]["spec"]["containers"][0]["ports"]}
    (monitor,) = [m for m in rendered["prod"] if m["kind"] == "PodMonitor" and m["metadata"]["name"] == "vireo-workers"]
    scraped = {ports[endpoint["port"]] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
    (policy,) = [
        m for m in rendered["prod"] if m["kind"] == "NetworkPolicy" and m["metadata"]["name"] == "vireo-scrape"
    ]
    assert scraped == {port["port"] for port in policy["spec"]["ingress"][0]["ports"]}
