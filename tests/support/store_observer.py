"""Remembers what the stores reported."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from serving.stores.breaker import BreakerState


@dataclass
class RecordingObserver:
    """Implements ``StoreObserver``."""

    states: list[BreakerState] = field(default_factory=list)
    hits: int = 0
    misses: int = 0
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    fallbacks: Counter[str] = field(default_factory=Counter)
    rejected: int = 0
    slowest_s: float = 0.0

    def breaker_changed(self, state: BreakerState) -> None:
        self.states.append(state)

    def looked_up(self, num_hits: int, num_misses: int) -> None:
        self.hits += num_hits
        self.misses += num_misses

    def call_finished(self, operation: str, outcome: str, elapsed_s: float) -> None:
        self.calls[operation, outcome] += 1
        self.slowest_s = max(self.slowest_s, elapsed_s)

    def fell_back(self, operation: str) -> None:
        self.fallbacks[operation] += 1

    def value_rejected(self) -> None:
        self.rejected += 1
