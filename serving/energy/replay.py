"""A counter that was recorded, played back: for tests, and to look at an account again.

    {"source": "nvml", "note": "where and how it was recorded"}
    {"at_s": 0.0, "joules": 51234.5}
    {"at_s": 1.0, "joules": null}

One JSON value a line: the first says what was recorded, each other one what the counter gave so long after the first
reading; null where it gave none.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec

from serving.energy.meter import Reading
from serving.errors import ConfigError


class Head(msgspec.Struct, forbid_unknown_fields=True):
    """First line."""

    source: str
    note: str = ""


class Entry(msgspec.Struct, forbid_unknown_fields=True):
    """Every other line."""

    at_s: float
    joules: float | None


class Recording(NamedTuple):
    """Entries in order of time."""

    head: Head
    entries: tuple[Entry, ...]


def load(path: Path) -> Recording:
    """Read a recording. Raises: ConfigError."""
    try:
        first, *others = path.read_bytes().splitlines()
        head = msgspec.json.decode(first, type=Head)
        entries = tuple(msgspec.json.decode(line, type=Entry) for line in others)
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise ConfigError(f"the recording {path} cannot be read: {error}") from None
    if not entries or any(one.at_s >= other.at_s for one, other in pairwise(entries)):
        raise ConfigError(f"the recording {path} needs entries, each later than the one before")
    return Recording(head, entries)


class ReplayMeter:
    """Plays a recording from the moment it is made; after its end there is no reading. Its joules are called
    ``replay``, whatever was recorded: nobody is to take them for measured ones."""

    source = "replay"
    own_idle = 1.0

    def __init__(self, recording: Recording, clock: Callable[[], float]) -> None:
        self._entries = recording.entries
        self._clock = clock
        self._began_s = clock()

    def read(self) -> Reading | None:
        """See ``Meter``."""
        at_s = self._entries[0].at_s + self._clock() - self._began_s
        if at_s > self._entries[-1].at_s:
            return None
        joules = self._entries[bisect_right(self._entries, at_s, key=lambda entry: entry.at_s) - 1].joules
        return None if joules is None else Reading(joules)
