"""Events, metrics, traces and logs."""

from __future__ import annotations

import os
from pathlib import Path

from serving.telemetry import logs, tracing
from serving.telemetry.events import Sink


def setup(metrics_dir: Path, log_level: str) -> Sink:
    """Prepare this process; the sink counts what it is told. The metrics' files are opened here and not before."""
    metrics_dir.mkdir(parents=True, exist_ok=True)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics_dir)
    logs.configure(log_level)
    tracing.start()
    from serving.telemetry.metrics import record

    return record
