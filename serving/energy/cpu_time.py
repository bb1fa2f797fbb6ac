"""CPU seconds: of this process and all that descend from it, and of the whole machine."""

from __future__ import annotations

import math
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
    reading. While children cannot be listed (there are no file descriptors left, say) those that are known count.

    A process that was not known before is new, and all of its time is: unless this is more than the machine has had
    since the last reading. Then it has a past that is not of this time, and counts from now on."""

    def __init__(self, pid: int | None = None) -> None:
        self._pid = os.getpid() if pid is None else pid
        self._last_s: dict[int, float] = {}
        self._children: dict[int, list[int]] = {}
        self._began_s = -math.inf
        self._total_s = 0.0

    def read(self) -> float:
        """Seconds; never goes back."""
        began_s, self._began_s = self._began_s, time.monotonic()
        last_s, self._last_s = self._last_s, self._walk()
        known_s = new_s = 0.0
        for pid, now_s in self._last_s.items():
            before_s = last_s.get(pid, math.inf)
            if now_s >= before_s:
                known_s += now_s - before_s
            else:
                new_s += now_s
        most_s = (os.cpu_count() or 1) * (time.monotonic() - began_s)
        self._total_s += known_s + (new_s if known_s + new_s <= most_s else 0.0)
        return self._total_s

    def _walk(self) -> dict[int, float]:
        """CPU seconds of each, so far."""
        seconds: dict[int, float] = {}
        before, self._children = self._children, {}
        waiting = [self._pid]
        while waiting:
            pid = waiting.pop()
            if pid in seconds:  # of a parent's old list, and of another's
                continue
            try:
                seconds[pid] = time.clock_gettime(_clock_of(pid))
            except OSError:  # it has ended
                continue
            try:
                children = _children(pid)
            except (OSError, psutil.Error):
                children = before.get(pid, [])
            self._children[pid] = children
            waiting += children
        return seconds


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
