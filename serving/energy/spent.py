"""What something took, as its replica says: it travels to the gateway, which reports and charges it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from serving.energy.meter import ESTIMATE


class Spent(NamedTuple):
    """Busy seconds, and their joules: None where the meter said nothing. ``source``: the meter's name."""

    seconds: float = 0.0
    joules: float | None = 0.0
    source: str = ESTIMATE

    def charged(self, watts: float) -> Spent:
        """What is charged: the joules that were attributed, or those of the declared power where there are none."""
        return self if self.joules is not None else Spent(self.seconds, self.seconds * watts, ESTIMATE)

    @property
    def attributes(self) -> dict[str, str | float]:
        """Of the span ``run``. Joules that are not known are left out, as absent attributes are."""
        known = {} if self.joules is None else {"vireo.energy_j": self.joules}
        return {**known, "vireo.energy_source": self.source}


def total(parts: Iterable[Spent]) -> Spent:
    """Of all together. Joules are not known unless all are; several sources are named with a plus."""
    told = [part for part in parts if part.seconds]
    joules = [part.joules for part in told]
    known = None if None in joules else sum(one for one in joules if one is not None)
    sources = sorted({part.source for part in told})
    return Spent(sum(part.seconds for part in told), known, "+".join(sources) or ESTIMATE)
