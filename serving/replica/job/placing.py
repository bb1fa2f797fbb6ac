"""Where the experts of a model on several ranks are, and where the load of late wants them. Moves nothing itself.

A target is made for the tokens of the window, and judged by those that come after it was made: it fits the accidents of
the first. What to do then, and when, is up to ``schedulers.experts.replacement``; ``RankedEngine`` carries that out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Final

from schedulers.experts.eplb import eplb
from schedulers.experts.loads import ExpertLoads
from schedulers.experts.placement import Placement, in_order
from schedulers.experts.replacement import (
    Decision,
    Event,
    Fetch,
    FetchFailed,
    Proposed,
    Replacement,
    ReplacementConfig,
    Switch,
)
from serving.delivery.job.experts import PlacedFacts

_WINDOW: Final = 256
"""Steps whose tokens count."""
_BYTES_PER_S: Final = 250e6
"""What a rank receives at most, on average: a part of what a link between processes or nodes has."""
_STAGED_BYTES: Final = 256 << 20
"""What a rank has beside its slots while experts move, or as much as the slots of one layer."""


class Placing:
    """One per engine. ``expert_bytes``: one expert of one layer. ``retry_s``: after a fetch that failed."""

    def __init__(self, placement: Placement, expert_bytes: int, retry_s: float = 5.0) -> None:
        staged = max(_STAGED_BYTES, placement.slots_per_rank * expert_bytes)
        self._machine = Replacement(
            placement,
            ReplacementConfig(
                expert_bytes=expert_bytes, bytes_per_s=_BYTES_PER_S, max_staged_bytes=staged, retry_s=retry_s
            ),
        )
        self._window = self._new_window()
        self._since = self._new_window()
        self._target: Placement | None = None
        self._fetch: Fetch | None = None
        self._uncounted: deque[Any] = deque(maxlen=_WINDOW)
        self.moves = self.failed = 0

    @classmethod
    def over(
        cls, num_ranks: int, *, layers: int, experts: int, spare: int, expert_bytes: int, retry_s: float = 5.0
    ) -> Placing:
        """In order, with ``spare`` slots beyond one for each expert, or as many more as ranks need to have alike."""
        num_slots = -(-(experts + spare) // num_ranks) * num_ranks
        return cls(in_order(layers, experts, num_ranks, num_slots), expert_bytes, retry_s)

    @property
    def placement(self) -> Placement:
        """As it is on every rank."""
        return self._machine.placement

    def add(self, loads: Iterable[Any]) -> None:
        """Count where tokens went in a step: int64 (layers, experts) of each request. The window has them later."""
        if present := [one for one in loads if one is not None]:
            self._uncounted.append(sum(present))

    def look(self, now_s: float) -> list[Decision]:
        """Make a target, or propose the last one, if tokens came meanwhile. To be called again and again."""
        self._count()
        if self._target is None:
            if self._window.groups:
                placement, counts = self.placement, self._window.counts()
                better = eplb(counts, placement.num_slots, placement.num_ranks, current=placement)
                self._target = better if better is not placement else None
                self._since = self._new_window()
        elif self._since.groups:
            proposed, self._target = Proposed(self._target, self._since.counts()), None
            return self.handle(now_s, proposed)
        return self.handle(now_s)

    def handle(self, now_s: float, *events: Event) -> list[Decision]:
        """What is to be done now; see ``Replacement``. Requests are not told of: an expert gives the same on any rank,
        so that whoever is under way goes on with the new placement, and the old one is free at once."""
        decisions = self._machine.handle(now_s, *events)
        self.failed += sum(isinstance(event, FetchFailed) for event in events)
        for decision in decisions:
            if isinstance(decision, Fetch):
                self._fetch = decision
            elif isinstance(decision, Switch) and self._fetch is not None:
                self.moves += len(self._fetch.moves)
        return decisions

    def next_wakeup_s(self) -> float | None:
        """When to call ``handle`` though nothing happened."""
        return self._machine.next_wakeup_s()

    def facts(self) -> PlacedFacts:
        """As of now."""
        self._count()
        placement = self.placement
        loads = [0.0] * placement.num_ranks
        for layer, counts in enumerate(self._window.counts()):
            loads = [one + more for one, more in zip(loads, placement.rank_loads(layer, counts), strict=True)]
        whole = sum(loads) or 1.0
        return PlacedFacts(
            version=placement.version,
            num_ranks=placement.num_ranks,
            num_slots=placement.num_slots,
            moves=self.moves,
            failed=self.failed,
            rank_loads=tuple(one / whole for one in loads),
        )

    def _new_window(self) -> ExpertLoads:
        placement = self._machine.placement
        return ExpertLoads(placement.num_layers, placement.num_experts, _WINDOW)

    def _count(self) -> None:
        """Off the path of steps, what came since the last time."""
        while self._uncounted:
            counts = self._uncounted.popleft().tolist()
            for window in (self._window, self._since):
                window.add(counts)
                window.turn()
