"""Which parts of a running system live, by their processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

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
    names = Counter(filter(None, (_part(child, state.pid, wanted) for child in children)))
    return found | names


def _part(process: psutil.Process, up: int, wanted: Sequence[str]) -> str | None:
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
        return deployment_of(title, wanted)
    return _NAMES.get(title)


def deployment_of(title: str, names: Sequence[str]) -> str | None:
    """Which of ``names`` a replica with that title is of: Ray adds a dot and what it does. Names may have dots, too."""
    found = title.removeprefix(_REPLICA).split()[0]
    return max((name for name in names if f"{found}.".startswith(f"{name}.")), key=len, default=None)
