"""How many of a tenant's rows may reach the last exit of a network.

The worst input for a network with early exits is one that no exit is sure of: it costs the whole network. A bound on
the share of such rows makes a tenant that sends only those pay with quality instead of with everybody's time.

Rows that may go deep are counted as deep at once, and rows as rows when they are done: so of the rows that are done, no
more than the share have been deep, whatever runs at the same time. Both counts are halved now and then; the
share is one of the latest ``WINDOW`` to twice as many rows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

WINDOW = 1000
_MAX_KEYS = 4096


@dataclass(slots=True)
class _Counts:
    rows: float = 0.0
    deep: float = 0.0


class DeepShare:
    """Counts by key; of more than ``_MAX_KEYS``, those that were not asked for longest are forgotten."""

    def __init__(self) -> None:
        self._counts: OrderedDict[Hashable, _Counts] = OrderedDict()

    def take(self, key: Hashable, rows: int, limit: float) -> bool:
        """Whether so many more rows may go deep. Then each of them counts as deep, until ``done``."""
        counts = self._of(key)
        if counts.deep + rows > limit * (counts.rows + rows):
            return False
        counts.deep += rows
        return True

    def done(self, key: Hashable, *, taken: int, rows: int, deep: int) -> None:
        """Of rows, ``taken`` of which might have gone deep, so many were run, and so many of them were deep."""
        counts = self._of(key)
        counts.rows += rows
        counts.deep = max(0.0, counts.deep - taken + deep)
        if counts.rows >= 2 * WINDOW:
            counts.rows /= 2
            counts.deep /= 2

    def _of(self, key: Hashable) -> _Counts:
        counts = self._counts.setdefault(key, _Counts())
        self._counts.move_to_end(key)
        if len(self._counts) > _MAX_KEYS:
            self._counts.popitem(last=False)
        return counts
