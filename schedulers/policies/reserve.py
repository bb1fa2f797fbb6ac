"""How much time a unit has to have left before it may start under a backlog: a feedback loop.

Where many have begun, each gets less of the engine than it would alone, and work on what ends late is lost. How much
less depends on the mix of units, so it is not predicted but regulated.
"""

from __future__ import annotations

from collections.abc import Callable

#: One that ends late raises the reserve as much as 50 answers in time lower it, so that about 2% of the units that
#: start under a backlog end late.
_UP, _DOWN, _MAX = 0.1, 0.002, 3.0


class EntryReserve:
    """Under a backlog, a unit starts only if its deadline leaves ``factor`` times what its later slices take."""

    def __init__(self, has_backlog: Callable[[], bool]) -> None:
        self.has_backlog = has_backlog
        self.factor = 0.0

    def raise_for_late(self) -> None:
        """A unit that had begun could not end in time."""
        if self.has_backlog():
            self.factor = min(_MAX, self.factor + _UP)

    def lower_for(self, num_answers: int) -> None:
        """Units were answered in time."""
        if self.has_backlog():
            self.factor = max(0.0, self.factor - _DOWN * num_answers)
