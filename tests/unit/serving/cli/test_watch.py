"""Whoever watches a process hears of its end from the kernel, once, and not any more after it was told to stop."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from serving.cli.watch import Part, Watch

Sleeper = subprocess.Popen[bytes]


@pytest.fixture
def sleepers() -> Iterator[list[Sleeper]]:
    started = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in range(2)]
    yield started
    for process in started:
        process.kill()
        process.communicate()


def parts_of(sleepers: list[Sleeper]) -> list[Part]:
    return [Part(f"sleeper {index}", process.pid) for index, process in enumerate(sleepers)]


def test_first_part_to_end_is_told_at_once_and_no_other(sleepers: list[Sleeper]) -> None:
    lost: queue.Queue[Part] = queue.Queue()
    parts = parts_of(sleepers)
    watch = Watch(parts, lost.put)
    watch.start()
    sleepers[1].kill()
    assert lost.get(timeout=10) == parts[1]
    sleepers[0].kill()
    watch.join()
    assert lost.empty()


def test_part_that_is_gone_already_is_told(sleepers: list[Sleeper]) -> None:
    lost: queue.Queue[Part] = queue.Queue()
    parts = parts_of(sleepers)
    sleepers[0].kill()
    sleepers[0].wait()
    Watch(parts, lost.put).start()
    assert lost.get(timeout=10) == parts[0]


def test_parts_may_end_after_the_watch_was_stopped(sleepers: list[Sleeper]) -> None:
    told = threading.Event()
    watch = Watch(parts_of(sleepers), lambda _part: told.set())
    watch.start()
    watch.stop()
    watch.join()
    sleepers[0].kill()
    sleepers[0].wait()
    assert not told.is_set()
