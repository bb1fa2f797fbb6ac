"""Where processor time goes in a process: py-spy's raw stacks, summed by module."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.benchmarks.common import ROOT

_RATE_PER_S = 200
_FRAME = re.compile(r"^(?P<function>.*) \((?P<file>[^()]*):(?P<line>\d+)\)$")


def record(pid: int, seconds: float, path: Path) -> subprocess.Popen[bytes]:
    """Start sampling; wait for the process that is returned. Threads that sleep are left out."""
    py_spy = Path(sys.executable).with_name("py-spy")
    command = [str(py_spy), "record", "--pid", str(pid), "--duration", str(max(1, round(seconds)))]
    command += ["--rate", str(_RATE_PER_S), "--format", "raw", "--full-filenames", "--output", str(path)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def summarise(path: Path) -> dict[str, list[tuple[str, float]]]:
    """Shares of the samples: ``self`` by module of the innermost frame, ``with callees`` by module of any frame (a
    sample counts once per module), ``functions`` by innermost function. Largest first."""
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
    return {
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
