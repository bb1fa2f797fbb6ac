"""Closes the front door of a system on this machine before it is taken down, so that what was accepted is answered.

Serve, told to shut down, stops HAProxy first and drops what it carries. HAProxy itself can do better: on SIGUSR1 it
takes no new connection, lets every request end, and goes.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil

_POLL_S = 0.05
_QUIET_S = 0.5
"""Nothing in flight for so long: what is still open are idle connections and streams that never end."""


def close_front_door(metrics_dir: Path, timeout_s: float) -> None:
    """Return when every request that came in has its answer, or ``timeout_s`` later."""
    doors = _haproxies()
    for door in doors:
        _signal(door)
    wait_drained(lambda: in_flight(metrics_dir), lambda: any(door.is_running() for door in doors), timeout_s)


def wait_drained(
    num_in_flight: Callable[[], float],
    is_open: Callable[[], bool],
    timeout_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait until the door has gone, or nothing has been in flight for a while, or ``timeout_s`` have passed."""
    started_s = quiet_since_s = clock()
    while is_open() and clock() - started_s < timeout_s:
        if num_in_flight() > 0:
            quiet_since_s = clock()
        elif clock() - quiet_since_s >= _QUIET_S:
            return
        sleep(_POLL_S)


def in_flight(metrics_dir: Path) -> float:
    """Requests that the gateways on this machine are serving now, read from the files of their metrics."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(metrics_dir))  # type: ignore[no-untyped-call]
    samples = (sample for family in registry.collect() for sample in family.samples)
    return sum(sample.value for sample in samples if sample.name == "vireo_in_flight_requests")


def _haproxies() -> list[psutil.Process]:
    """HAProxy's processes below this one; while a new configuration takes over there are two."""
    return [process for process in psutil.Process().children(recursive=True) if _name(process) == "haproxy"]


def _name(process: psutil.Process) -> str:
    try:
        name: str = process.name()
        return name
    except psutil.NoSuchProcess:
        return ""


def _signal(process: psutil.Process) -> None:
    try:
        process.send_signal(signal.SIGUSR1)
    except psutil.NoSuchProcess:
        return
