"""What ``/metrics`` says: the metrics of every process of a node, added up.

Gateways and replicas are separate processes. prometheus-client's multiprocess mode lets each write its own files into
one directory per node. Any gateway of the node adds them up for ``/metrics``, and so does ``vireo metrics``, on a port
of its own (docs/decisions/0006).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import psutil
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector


def exposition() -> bytes:
    """The metrics of every live process of this node, in Prometheus' text format."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if folder is None:
        return generate_latest()
    return generate_latest(node_registry(Path(folder)))


def node_registry(folder: Path) -> CollectorRegistry:
    """What adds up, at each scrape, the files of every process of a node."""
    registry = CollectorRegistry()
    registry.register(_NodeCollector(folder))
    return registry


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
