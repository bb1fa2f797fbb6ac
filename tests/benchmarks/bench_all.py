"""Every benchmark, one after the other, each alone on the machine: what others did meanwhile decides whether it counts.

    make bench-all                                                # hours; writes docs/benchmarks/*
    python -m tests.benchmarks.bench_all --only costs --only moe  # some of them
    python -m tests.benchmarks.bench_all --quick                  # shows that all of them run

Begins only while processes that are not its own keep less than a tenth of a core busy, looks every two seconds while a
benchmark runs, and takes its results over only if that stayed so: on average, and half a core within any ten seconds.
Those of a disturbed run stay under ``out/bench-all``, and what is committed stays as it was. The table is in
``docs/benchmarks/all.md``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks.common import (
    QUICK_RESULTS,
    RESULTS,
    ROOT,
    busy_s,
    markdown_table,
    out_dir,
    parser_of,
    provenance,
    write_results,
)

BUSY = 0.1
"""Cores that others may keep busy on average."""
WORST = 0.5
"""The same within ten seconds."""
_EVERY_S, _WINDOW = 2.0, 5
_LOOK_S = 6.0
DRAFTS = ROOT / "out" / "bench-all"
NOT_HERE = {"all", "commits", "gpu_check"}
"""This one, one that compares commits, and one for another machine."""


def names() -> list[str]:
    """Of all benchmarks that belong here, by alphabet."""
    found = (path.stem.removeprefix("bench_") for path in (ROOT / "tests" / "benchmarks").glob("bench_*.py"))
    return sorted(set(found) - NOT_HERE)


def main() -> None:
    """Command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--only", action="append", choices=names(), help="this one (may be repeated)")
    parser.add_argument("--wait-minutes", type=float, default=0.0, help="for a quiet machine, before each (default 0)")
    args = parser.parse_args()
    done = []
    for name in args.only or names():
        if not args.quick:
            wait_for_quiet(60.0 * args.wait_minutes)
        done.append(one(name, is_quick=args.quick, results=args.out or (QUICK_RESULTS if args.quick else RESULTS)))
        print(f"{name}: {done[-1].verdict} ({done[-1].took_s:.0f} s)", flush=True)
    document = {**provenance("all"), "runs": [{**asdict(run), "verdict": run.verdict} for run in done]}
    write_results(out_dir(args), document, table(done))
    if any(run.verdict != "counts" for run in done):
        sys.exit(1)


@dataclass(frozen=True, kw_only=True)
class Run:
    """``foreign``, ``worst``: cores that others kept busy, on average and in their worst ten seconds."""

    name: str
    took_s: float
    foreign: float
    worst: float
    problem: str = ""

    @property
    def verdict(self) -> str:
        """In a word, or the problem."""
        if self.problem:
            return self.problem
        return "counts" if self.foreign <= BUSY and self.worst <= WORST else "void: disturbed"


def one(name: str, *, is_quick: bool, results: Path) -> Run:
    """Run it into a draft; take the draft over where it counts. ``is_quick``: whatever others do, it counts."""
    draft = DRAFTS / name
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    for old in RESULTS.glob(f"{name.replace('_', '-')}*"):  # parts that are not measured anew stay
        (shutil.copytree if old.is_dir() else shutil.copy)(old, draft / old.name)
    command = [sys.executable, "-m", f"tests.benchmarks.bench_{name}", "--out", str(draft)]
    began_s = time.monotonic()
    with Watch() as watch:
        ended = subprocess.run([*command, *(["--quick"] if is_quick else [])], cwd=ROOT, check=False).returncode
    run = Run(
        name=name,
        took_s=round(time.monotonic() - began_s, 1),
        foreign=0.0 if is_quick else round(watch.mean, 3),
        worst=0.0 if is_quick else round(watch.worst, 3),
        problem=f"failed with {ended}" if ended else "",
    )
    if run.verdict == "counts":
        shutil.copytree(draft, results, dirs_exist_ok=True)
    return run


def wait_for_quiet(seconds: float) -> None:
    """Raises: SystemExit: others keep the machine busy, still."""
    until_s = time.monotonic() + seconds
    while True:
        with Watch() as watch:
            time.sleep(_LOOK_S)
        if watch.mean <= BUSY:
            return
        if time.monotonic() >= until_s:
            busiest = ", ".join(_busiest()) or "none by name"
            sys.exit(f"others keep {watch.mean:.2f} cores busy ({busiest}); need at most {BUSY}: stop them")


def _busiest() -> Iterator[str]:
    """Names of those that have used most, ours apart."""
    ours = {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
    found = [one for one in psutil.process_iter(["name", "cpu_percent"]) if one.pid not in ours]
    time.sleep(0.5)
    with_load = [(one.cpu_percent(), one.name()) for one in found if one.is_running()]
    yield from (f"{name} {percent:.0f}%" for percent, name in sorted(with_load, reverse=True)[:3] if percent > 2)


@dataclass
class Watch:
    """Around a measurement: what processes that this one did not start kept busy, in cores."""

    mean: float = 0.0
    worst: float = 0.0
    _looks: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_WINDOW + 1))
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Watch:
        self._first = self._look()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        at_s, foreign_s = self._look()
        self.mean = _rate(self._first, (at_s, foreign_s))

    def _run(self) -> None:
        while not self._over.wait(_EVERY_S):
            self._looks.append(self._look())
            if len(self._looks) > _WINDOW:
                self.worst = max(self.worst, _rate(self._looks[0], self._looks[-1]))

    def _look(self) -> tuple[float, float]:
        return time.monotonic(), busy_s() - own_s()


def _rate(before: tuple[float, float], after: tuple[float, float]) -> float:
    return max(0.0, (after[1] - before[1]) / max(1e-9, after[0] - before[0]))


def own_s() -> float:
    """Processor seconds of this process and of all that come from it, those that are over and were waited for too."""
    me, total = psutil.Process(), 0.0
    for process in [me, *me.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


@contextmanager
def adopting() -> Iterator[None]:
    """Processes whose parents have ended come to this one, so that they are still its own (Linux)."""
    import ctypes

    library, subreaper = ctypes.CDLL(None), 36
    library.prctl(subreaper, 1, 0, 0, 0)
    try:
        yield
    finally:
        library.prctl(subreaper, 0, 0, 0, 0)


def table(runs: list[Run]) -> str:
    """For people."""
    header = ["benchmark", "took, s", "others' cores", "worst 10 s", "verdict"]
    cells: list[list[Any]] = [[run.name, run.took_s, run.foreign, run.worst, run.verdict] for run in runs]
    return markdown_table(header, cells)


if __name__ == "__main__":
    with adopting():
        main()
