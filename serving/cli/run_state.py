"""What is running on this machine: one small file per start, in its run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

FILE_NAME = "run.json"


@dataclass(frozen=True, kw_only=True)
class RunState:
    """One `vireo up`. ``created_s`` is the process's own start time, so that a reused pid is not mistaken for it.
    ``tasks``: which of ``models`` can be asked for what.
    """

    pid: int
    created_s: float
    run_dir: str
    http_url: str
    grpc_address: str
    profile: str
    models: tuple[str, ...]
    tasks: Mapping[str, tuple[str, ...]]
    ready: bool = False

    @staticmethod
    def read(run_dir: Path) -> RunState | None:
        """The state of the last start there, or None."""
        try:
            fields = json.loads((run_dir / FILE_NAME).read_text())
            tasks = {task: tuple(models) for task, models in fields["tasks"].items()}
            return RunState(**{**fields, "models": tuple(fields["models"]), "tasks": tasks})
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self) -> None:
        """Replace the file in one step."""
        path = Path(self.run_dir) / FILE_NAME
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(self)))
        fresh.replace(path)

    @staticmethod
    def forget(run_dir: Path) -> None:
        """Nothing is running there any more."""
        (run_dir / FILE_NAME).unlink(missing_ok=True)

    def is_running(self) -> bool:
        """Whether that very process still lives."""
        try:
            return bool(abs(psutil.Process(self.pid).create_time() - self.created_s) < 1.0)
        except psutil.NoSuchProcess:
            return False

    @property
    def port(self) -> int:
        """HTTP port."""
        return int(self.http_url.rpartition(":")[2])

    def public(self) -> dict[str, Any]:
        """What `vireo status` shows of it."""
        return {key: value for key, value in asdict(self).items() if key not in ("created_s", "ready")}


def found(port: int, run_dir: Path) -> tuple[Path, RunState | None]:
    """The run folder of what runs on a port, in ``run_dir`` or in any other, and its state if it lives."""
    state = RunState.read(run_dir)
    if state is not None and state.port == port and state.is_running():
        return run_dir, state
    for state in started():
        if state.port == port:
            return Path(state.run_dir), state if state.is_running() else None
    return run_dir, None


def started() -> list[RunState]:
    """Every system of this user of which a process lives on this machine, by port; wherever its run folder is."""
    from serving.system.ray_env import started_in

    states = [state for folder in started_in() if (state := RunState.read(folder)) is not None]
    return sorted(states, key=lambda state: state.port)
