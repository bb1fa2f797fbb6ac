"""Ends what a start has left behind when it was killed and could not clean up.

Nearly everything ends by itself then; two agents of Ray (2.60) do not notice that their raylet and their GCS are gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

MARK = "VIREO_STARTED_IN"
"""Every process of a start inherits this variable; its value is the run folder."""
_GRACE_S = 5.0


def end_leftovers(run_dir: Path) -> int:
    """Kill the processes of an earlier start in that folder. Call when none is running. Returns how many there were."""
    found = list(_marked(run_dir))
    for process in found:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(found, timeout=_GRACE_S)
    return len(found)


def _marked(run_dir: Path) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(run_dir) or _logs_into(process, run_dir):
                yield process
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue


def _logs_into(process: psutil.Process, run_dir: Path) -> bool:
    """Ray's agents write their titles over their environment; what they log to is still theirs."""
    if not process.name().startswith("ray::"):
        return False
    return any(Path(file.path).is_relative_to(run_dir) for file in process.open_files())
