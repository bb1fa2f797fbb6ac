"""Where processor time goes in a process: by thread, from the kernel; by Python module, from py-spy.

py-spy samples whoever holds Python's lock (``--gil``): threads that wait, and native code that has let go of the lock
(torch's kernels, Ray's and gRPC's own threads), are not in its figures but in those by thread.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.benchmarks.common import ROOT

_RATE_PER_S = 200
_FRAME = re.compile(r"^(?P<function>.*) \((?P<file>[^()]*):(?P<line>\d+)\)$")


def record(pid: int, seconds: float, path: Path) -> subprocess.Popen[bytes]:
    """Start sampling; wait for the process that is returned."""
    py_spy = Path(sys.executable).with_name("py-spy")
    command = [str(py_spy), "record", "--pid", str(pid), "--duration", str(max(1, round(seconds)))]
    command += ["--rate", str(_RATE_PER_S), "--gil", "--format", "raw", "--full-filenames", "--output", str(path)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def thread_cpu_s(pid: int) -> dict[str, float]:
    """Processor seconds so far by name of thread; a number at the end of a name is cut off."""
    totals: dict[str, float] = {}
    for task in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            name, _, fields = task.read_text().partition("(")[2].rpartition(")")
        except OSError:  # it has ended
            continue
        ticks = sum(int(ticks) for ticks in fields.split()[11:13])
        name = name.rstrip("0123456789-_.") or name
        totals[name] = totals.get(name, 0.0) + ticks / os.sysconf("SC_CLK_TCK")
    return totals


def difference(after: dict[str, float], before: dict[str, float], num_requests: int) -> list[tuple[str, float]]:
    """Milliseconds per request of each thread, largest first; those below 5 microseconds are left out."""
    pairs = [(name, round(1e3 * (s - before.get(name, 0.0)) / num_requests, 3)) for name, s in after.items()]
    return sorted((pair for pair in pairs if pair[1] >= 0.005), key=lambda pair: -pair[1])


def summarise(path: Path, seconds: float) -> dict[str, list[tuple[str, float]]]:
    """Shares of the samples: ``self`` by module of the innermost frame, ``with callees`` by module of any frame (a
    sample counts once per module), ``functions`` by innermost function. Largest first. ``lock held`` is the share of
    the time in which any thread held Python's lock."""
    own: Counter[str] = Counter()
    inclusive: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    for stack, count in _stacks(path):
        frames = [_split(frame) for frame in stack]
        if not frames:
            continue
        own[frames[-1][0]] += count
        functions[f"{frames[-1][0]}:{frames[-1][1]}"] += count
        inclusive.update(dict.fromkeys({module for module, _ in frames}, count))
    total = max(own.total(), 1)
    held = [("any thread", round(own.total() / (_RATE_PER_S * seconds), 3))]
    return {"lock held": held} | {
        name: [(key, round(count / total, 4)) for key, count in counter.most_common(20)]
        for name, counter in (("self", own), ("with callees", inclusive), ("functions", functions))
    }


def _stacks(path: Path) -> list[tuple[list[str], int]]:
    lines = path.read_text().splitlines() if path.exists() else []
    pairs = [line.rpartition(" ") for line in lines if line]
    return [(stack.split(";"), int(count)) for stack, _, count in pairs]


def _split(frame: str) -> tuple[str, str]:
    """Module and function. Ours by file, libraries by package, the standard library by module."""
    match = _FRAME.match(frame)
    if match is None:
        return "native or thread", frame
    file, function = match["file"], match["function"]
    if "site-packages/" in file:
        parts = file.split("site-packages/")[1].split("/")
        return "/".join(parts[:2] if parts[0] == "ray" else parts[:1]).removesuffix(".py"), function
    if file.startswith(str(ROOT)):
        return file.removeprefix(f"{ROOT}/"), function
    return f"stdlib {Path(file).stem}" if "/lib/python" in file else Path(file).name, function
