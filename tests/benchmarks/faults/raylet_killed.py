"""The raylet is killed, and with it everything that Ray runs: when does a supervisor, or a probe, hear of it?"""

from __future__ import annotations

import contextlib
import subprocess
import time

from tests.benchmarks.faults.harness import Figures, Start
from tests.support.system import System

TITLE = "raylet killed"
_PATIENCE_S = 30.0
_LOOK_S = 0.05


def measure(start: Start) -> Figures:
    """Kill it and look for ``_PATIENCE_S`` at what `vireo up` and its probes say."""
    figures: Figures = {}
    # A system that does not notice cannot be taken down in order either: what it leaves behind is killed.
    with contextlib.suppress(AssertionError), start() as system:
        (raylet,) = system.named("raylet")
        raylet.kill()
        figures = _told(system, time.monotonic())
    return figures


def _told(system: System, killed_s: float) -> Figures:
    red_s = ended_s = None
    while (elapsed_s := time.monotonic() - killed_s) < _PATIENCE_S and (red_s is None or ended_s is None):
        if red_s is None and not system.is_ready():
            red_s = round(elapsed_s, 2)
        if ended_s is None and system.process.poll() is not None:
            ended_s = round(time.monotonic() - killed_s, 2)
        with contextlib.suppress(subprocess.TimeoutExpired):
            system.process.wait(_LOOK_S)
    return {
        "readiness red after, s (of 30 watched)": red_s,
        "`vireo up` ends after, s (of 30 watched)": ended_s,
        "its exit code": system.process.poll(),
    }
