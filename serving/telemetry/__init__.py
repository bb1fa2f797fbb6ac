"""Metrics and logs."""

from __future__ import annotations

import os
from pathlib import Path

from serving.telemetry import logs


def setup(metrics_dir: Path, log_level: str) -> None:
    """Prepare this process. Must run before ``serving.telemetry.metrics`` is imported, which opens the files."""
    metrics_dir.mkdir(parents=True, exist_ok=True)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics_dir)
    logs.configure(log_level)
