"""Watches the processes that `vireo up` has started and that nobody brings back: one of them dead, all must end."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import psutil

VITAL = ("raylet", "gcs_server")
"""Without the raylet no replica that dies is replaced, and without the GCS Ray knows nothing of its own actors. What
already serves goes on for a while and every probe stays green, so that nobody would notice."""


@dataclass(frozen=True)
class Part:
    """A process and what to call it."""

    name: str
    pid: int


def vital_children() -> list[Part]:
    """Those of this process."""
    return [Part(child.name(), child.pid) for child in psutil.Process().children() if child.name() in VITAL]


class Watch:
    """Calls ``when_lost``, from a thread of its own, as soon as the first of the parts ends; at most once.

    The kernel tells it: nothing is looked at in intervals.
    """

    def __init__(self, parts: Iterable[Part], when_lost: Callable[[Part], None]) -> None:
        self._parts = tuple(parts)
        self._when_lost = when_lost
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """From now on parts may end. Idempotent."""
        os.eventfd_write(self._stop, 1)

    def join(self) -> None:
        """Wait until nothing is watched any more."""
        self._thread.join()

    def _run(self) -> None:
        handles: dict[int, Part] = {}
        for part in self._parts:
            try:
                handles[os.pidfd_open(part.pid)] = part
            except ProcessLookupError:
                self._when_lost(part)
                return
        poll = select.poll()
        for handle in (*handles, self._stop):
            poll.register(handle, select.POLLIN)
        ready = {handle for handle, _ in poll.poll()}
        for handle in handles:
            os.close(handle)
        if self._stop not in ready:
            self._when_lost(handles[min(ready)])
