"""Where the experts of a model on several ranks are, and where the load of late wants them. Moves nothing itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from schedulers.experts.eplb import eplb
from schedulers.experts.placement import Move, Placement, in_order
from serving.delivery.job.experts import PlacedFacts

_WINDOW: Final = 256
"""Steps of requests whose load counts."""
_WORTH: Final = 0.98
"""A placement is worth its moves where the busiest ranks come to less than this part of what they have to do now."""


@dataclass(slots=True)
class Placing:
    """One per engine. ``num_slots``: of a layer, on all ranks."""

    placement: Placement
    moves: int = field(default=0, init=False)
    failed: int = field(default=0, init=False)
    _window: deque[Any] = field(default_factory=lambda: deque(maxlen=_WINDOW), init=False)

    @classmethod
    def over(cls, num_ranks: int, *, layers: int, experts: int, spare: int) -> Placing:
        """In order, with ``spare`` slots beyond one for each expert, or as many more as ranks need to have alike."""
        num_slots = -(-(experts + spare) // num_ranks) * num_ranks
        return cls(in_order(layers, experts, num_ranks, num_slots))

    def add(self, loads: Iterable[Any]) -> None:
        """Count where tokens went in a step: int64 (layers, experts) of each request."""
        self._window.extend(one for one in loads if one is not None)

    def wanted(self) -> tuple[Placement, list[Move]] | None:
        """A better placement, and how to come to it. None: what there is will do."""
        if not self._window:
            return None
        placement, counts = self.placement, self._counts()
        better = eplb(counts, placement.num_slots, placement.num_ranks, current=placement)
        if _busiest(better, counts) >= _WORTH * _busiest(placement, counts):
            return None
        return better, placement.moves_to(better)

    def switched(self, placement: Placement, moves: list[Move]) -> None:
        """It holds on every rank."""
        self.placement = placement
        self.moves += len(moves)

    def facts(self) -> PlacedFacts:
        """As of now."""
        placement = self.placement
        loads = [0.0] * placement.num_ranks
        if self._window:
            for layer, counts in enumerate(self._counts()):
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

    def _counts(self) -> list[list[int]]:
        counts: list[list[int]] = sum(self._window).tolist()
        return counts


def _busiest(placement: Placement, counts: list[list[int]]) -> float:
    """Tokens of each layer's busiest rank: what a step takes as long as."""
    return sum(max(placement.rank_loads(layer, of_layer)) for layer, of_layer in enumerate(counts))
