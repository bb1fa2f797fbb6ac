"""What the scenarios of ``bench_faults`` share: a system of either side, a watched victim, watched memory."""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import psutil

from tests.support.system import MODEL, System, running_system

Figures: TypeAlias = Mapping[str, float | int | str | None]
"""Column to figure; None where this side has none."""


@dataclass(frozen=True)
class Start:
    """Starts systems of one side: of the working tree ``root``."""

    root: Path

    def __call__(
        self, *settings: str, tenants: Sequence[Mapping[str, Any]] = (), models: Sequence[Mapping[str, Any]] = ()
    ) -> AbstractContextManager[System]:
        """Give one over when it is ready, take it down afterwards; see ``running_system``. ``models`` are served beside
        the classifier."""
        served = ({"id": MODEL}, *models)
        if (self.root / "serving" / "config.py").is_file():
            return running_system(*settings, *_in_three_lists(models), tenants=tenants, root=self.root)
        return running_system(*settings, models=served, tenants=tenants, root=self.root)


def _in_three_lists(models: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The settings of models as commits before ``models`` became one list take them."""
    flat = [{**model, **model.get("options", {})} for model in models]
    for model in flat:
        model.pop("options", None)
    lists = {"chat_models": "texthawk2", "video_models": "vdit"}
    return tuple(
        f"{name}={json.dumps([model for model in flat if model['id'].startswith(family)])}"
        for name, family in lists.items()
    )


class Scenario(Protocol):
    """A module of this package."""

    TITLE: str
    """The fault in a few words."""

    def measure(self, start: Start) -> Figures:
        """Commit the fault against one side and say what it did to others."""
        ...


@dataclass
class Watched:
    """Calls of a victim, in order; ``None`` for one that failed."""

    seconds: list[float] = field(default_factory=list)
    failed: int = 0
    longest_gap_s: float = 0.0
    """The longest time from one success to the next."""

    @property
    def worst_ms(self) -> float:
        """The slowest call that succeeded or failed."""
        return round(max(self.seconds, default=0.0) * 1e3, 1)

    @property
    def p50_ms(self) -> float:
        """The median call."""
        return round(statistics.median(self.seconds) * 1e3, 1) if self.seconds else 0.0


@contextmanager
def watched(call: Callable[[], object], every_s: float = 0.05) -> Iterator[Watched]:
    """Make ``call`` again and again, from a thread, while the block runs. One that raises has failed.

    One caller, one call at a time: a call that takes long delays the next, so that its length shows up once and whole.
    """
    seen, stop = Watched(), threading.Event()

    def run() -> None:
        last_success_s = time.monotonic()
        while not stop.is_set():
            begun_s = time.monotonic()
            try:
                call()
            except Exception:
                seen.failed += 1
            else:
                seen.longest_gap_s = max(seen.longest_gap_s, time.monotonic() - last_success_s)
                last_success_s = time.monotonic()
            seen.seconds.append(time.monotonic() - begun_s)
            stop.wait(max(0.0, every_s - seen.seconds[-1]))
        seen.longest_gap_s = max(seen.longest_gap_s, time.monotonic() - last_success_s)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join(60.0)


@dataclass
class Memory:
    """Resident memory of a set of processes, in MiB."""

    before: float
    peak: float

    @property
    def growth(self) -> int:
        """How much more than before it was at its peak."""
        return round(self.peak - self.before)


@contextmanager
def memory_of(find: Callable[[], Sequence[psutil.Process]], every_s: float = 0.05) -> Iterator[Memory]:
    """Watch the memory that the processes found by ``find`` hold together while the block runs."""
    before = _resident_mib(find())
    seen, stop = Memory(before, before), threading.Event()

    def run() -> None:
        processes, looked_s = find(), time.monotonic()
        while not stop.wait(every_s):
            if time.monotonic() - looked_s > 1.0:  # workers come and go; looking for them is not free
                processes, looked_s = find(), time.monotonic()
            seen.peak = max(seen.peak, _resident_mib(processes))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join(10.0)


def _resident_mib(processes: Sequence[psutil.Process]) -> float:
    total = 0
    for process in processes:
        try:
            total += process.memory_info().rss
        except psutil.Error:
            continue
    return total / (1 << 20)


def gateways(system: System) -> list[psutil.Process]:
    """The gateways and what they have started."""
    found = system.replicas("Gateway")
    for process in list(found):
        try:
            found += process.children(recursive=True)
        except psutil.Error:
            continue
    return found
