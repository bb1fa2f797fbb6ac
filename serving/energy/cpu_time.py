"""CPU seconds: of this process and all that descend from it, and of the whole machine."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil

_PROC = Path("/proc")


def _clock_of(pid: int) -> int:
    """Linux's number for the CPU clock of a process (``man clock_getcpuclockid``), to the nanosecond."""
    return (~pid << 3) | 2


class TreeCpuTime:
    """CPU seconds of a process and its descendants. What a child took that has ended stays counted, as of the last
    reading."""

    def __init__(self, pid: int | None = None) -> None:
        self._pid = os.getpid() if pid is None else pid
        self._last_s: dict[int, float] = {}
        self._total_s = 0.0

    def read(self) -> float:
        """Seconds; never goes back."""
        last_s, self._last_s = self._last_s, {}
        waiting = [self._pid]
        while waiting:
            pid = waiting.pop()
            try:
                now_s = time.clock_gettime(_clock_of(pid))
                children = _children(pid)
            except (OSError, psutil.Error):  # it has ended
                continue
            before_s = last_s.get(pid, 0.0)
            self._total_s += now_s - before_s if now_s >= before_s else now_s
            self._last_s[pid] = now_s
            waiting += children
        return self._total_s


def _children(pid: int) -> list[int]:
    tasks = _PROC / str(pid) / "task"
    try:
        return [int(child) for task in os.listdir(tasks) for child in (tasks / task / "children").read_text().split()]
    except FileNotFoundError:  # a thread has just ended, or this kernel does not list children there
        return [child.pid for child in psutil.Process(pid).children()]


def machine_cpu_s(proc: Path = _PROC) -> float:
    """CPU seconds of everything that runs here, since the start of the machine: neither idle nor waiting for disks."""
    fields = [int(word) for word in (proc / "stat").read_text().split("\n", 1)[0].split()[1:]]
    user, nice, system, _idle, _iowait, irq, softirq = fields[:7]
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
