"""Which parts of a running system live, by their processes."""

from __future__ import annotations

from collections import Counter

import psutil

from serving.cli.run_state import RunState

_REPLICA = "ray::ServeReplica:vireo:"
_NAMES = {"redis-server": "redis", "gcs_server": "gcs_server", "raylet": "raylet", "haproxy": "haproxy"}
STAND_IN = "haproxy (stand-in)"


def parts(state: RunState) -> dict[str, int]:
    """Part to how many of it live; 0 for one that should and does not. An outside Redis is not among them."""
    wanted = ("gcs_server", "raylet", "controller", "haproxy", "Gateway", *state.models)
    found = dict.fromkeys(wanted, 0)
    try:
        children = psutil.Process(state.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return found
    names = Counter(filter(None, (_part(child, state.pid) for child in children)))
    return found | names


def _part(process: psutil.Process, up: int) -> str | None:
    try:
        title = process.name() if process.name() in _NAMES else " ".join(process.cmdline())
        parent = process.ppid()
    except psutil.Error:
        return None
    if title == "haproxy" and parent == up:  # Ray's own is a child of an actor
        return STAND_IN
    if title.startswith("ray::ServeController"):
        return "controller"
    if title.startswith(_REPLICA):
        return title.removeprefix(_REPLICA).split()[0].partition(".")[0]
    return _NAMES.get(title)
