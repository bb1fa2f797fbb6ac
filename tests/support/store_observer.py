"""Remembers what the stores told."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from serving.stores.breaker import BreakerState
from serving.telemetry.events import (
    BreakerChanged,
    BucketRepaired,
    Event,
    ResultRejected,
    ResultsLookedUp,
    StoreCalled,
    StoreFellBack,
)


@dataclass
class RecordingObserver:
    """A sink of store events."""

    states: list[BreakerState] = field(default_factory=list)
    hits: int = 0
    misses: int = 0
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    fallbacks: Counter[str] = field(default_factory=Counter)
    rejected: int = 0
    repaired: list[str] = field(default_factory=list)
    slowest_s: float = 0.0

    def __call__(self, event: Event) -> None:
        match event:
            case BreakerChanged(state):
                self.states.append(state)
            case ResultsLookedUp(num_hits, num_misses):
                self.hits += num_hits
                self.misses += num_misses
            case StoreCalled(operation, outcome, seconds):
                self.calls[operation, outcome] += 1
                self.slowest_s = max(self.slowest_s, seconds)
            case StoreFellBack(operation):
                self.fallbacks[operation] += 1
            case ResultRejected():
                self.rejected += 1
            case BucketRepaired(tenant):
                self.repaired.append(tenant)
