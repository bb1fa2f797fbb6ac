"""Where and with what a run was made, for its report. Names no host and no user."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path


def describe_environment() -> dict[str, str]:
    """Facts about the machine of the generator. Ones that cannot be found out are left out."""
    facts = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "vireo": _version("vireo"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "cores usable": str(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else str(os.cpu_count()),
        "load average before": _load_average(),
        "grpcio": _version("grpcio"),
    }
    return {name: value for name, value in facts.items() if value}


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _load_average() -> str:
    try:
        return " ".join(f"{value:.2f}" for value in os.getloadavg())
    except OSError:
        return ""
