"""What ``/metrics`` says: the metrics of every process of a node, added up.

Gateways and replicas are separate processes. prometheus-client's multiprocess mode lets each write its own files into
one directory per node. Any gateway of the node adds them up for ``/metrics``, and so does ``vireo metrics``, on a port
of its own (docs/decisions/0006).
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Protocol

import psutil
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

_TENANT: Final = "tenant"
_OPENMETRICS: Final = re.compile(r"application/openmetrics-text(?! *; *version=(?!1\.0\.0))", re.IGNORECASE)
"""In a header ``accept``: without a version, or in the one that is written. The library's own reading of it raises
TypeError for what is no version."""


class _Source(Protocol):
    def collect(self) -> Iterable[Metric]: ...


def exposition(accept: str = "", *, names_tenants: bool = False) -> tuple[bytes, str]:
    """The metrics of every live process of this node, and their content type: OpenMetrics if ``accept`` asks for it,
    else Prometheus' text format. ``names_tenants``: each by itself instead of all of them added up."""
    registry = node_registry(_source(), names_tenants=names_tenants)
    if _OPENMETRICS.search(accept):
        text: bytes = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]
        return text, openmetrics.CONTENT_TYPE_LATEST
    return generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4


def node_metrics() -> Iterable[Metric]:
    """The same, as numbers."""
    return _source().collect()


def _source() -> _Source:
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return REGISTRY if folder is None else _NodeCollector(Path(folder))


def node_registry(source: _Source | Path, *, names_tenants: bool = False) -> CollectorRegistry:
    """What adds up, at each scrape, the files of every process of a node, which are in that folder."""
    registry = CollectorRegistry()
    found = _NodeCollector(source) if isinstance(source, Path) else source
    registry.register(_Shown(found, names_tenants))
    return registry


class _Shown(Collector):
    def __init__(self, source: _Source, names_tenants: bool) -> None:
        self._source = source
        self._names_tenants = names_tenants

    def describe(self) -> Iterable[Metric]:
        """Nothing: what there is is known when it is collected."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Every metric, of each tenant or of all."""
        found = self._source.collect()
        return found if self._names_tenants else map(_without_tenants, found)


def _without_tenants(metric: Metric) -> Metric:
    """Only counters and gauges that are sums have that label, so that adding up says what it did."""
    if not any(_TENANT in sample.labels for sample in metric.samples):
        return metric
    totals: defaultdict[tuple[str, tuple[tuple[str, str], ...]], float] = defaultdict(float)
    for sample in metric.samples:
        labels = tuple((name, value) for name, value in sample.labels.items() if name != _TENANT)
        totals[sample.name, labels] += sample.value
    shown = Metric(metric.name, metric.documentation, metric.type, metric.unit)
    for (name, labels), total in totals.items():
        shown.add_sample(name, dict(labels), total)
    return shown


class _NodeCollector(Collector):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def describe(self) -> Iterable[Metric]:
        """Nothing: what there is is known when it is collected."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Every metric, with the gauges of dead processes gone."""
        forget_dead_processes(self._folder)
        files = MultiProcessCollector(None, path=str(self._folder))  # type: ignore[no-untyped-call]
        found: Iterable[Metric] = files.collect()  # type: ignore[no-untyped-call]
        return found


def forget_dead_processes(folder: Path) -> None:
    """Drop the gauges of processes that have gone: a killed replica must not stay in flight for ever.

    Live ones, and those of which the most recent counts (vLLM's): nobody else may have set them since.
    """
    for path in (*folder.glob("gauge_live*.db"), *folder.glob("gauge_mostrecent_*.db")):
        if not _is_alive(int(path.stem.rsplit("_", 1)[1])):
            # Another gateway of this node may be doing the same.
            path.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    """A killed process that its parent has not waited for yet is dead, too."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
