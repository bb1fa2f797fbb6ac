"""What every meter gives: joules since some start, or nothing. An absent reading is None and never 0."""

from __future__ import annotations

from typing import NamedTuple, Protocol

ESTIMATE = "estimate"


class NoMeter(Exception):
    """There is no such counter here, or it may not be read. The message says why."""


class Reading(NamedTuple):
    """``joules`` since some start; they only grow, unless the counter began anew. ``own``: the part of what was added
    since the last reading that this replica caused, where others share the counter, and ``is_idle``: whether nobody
    did anything."""

    joules: float
    own: float = 1.0
    is_idle: bool = True


class Meter(Protocol):
    """A counter of energy. Use from one thread at a time."""

    @property
    def source(self) -> str:
        """How answers call it."""
        ...

    @property
    def own_idle(self) -> float:
        """Part of the idle power of what it measures that is this replica's."""
        ...

    def read(self) -> Reading | None:
        """The counter now; None: it gives no reading."""
        ...
