"""How many tokens each expert got of late, by phase or tenant, and how even that is over experts or ranks."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import chain
from operator import add, sub
from typing import TypeAlias

_PARTS = 8
"""Of a window, which moves on by one of them at a time."""
_Flat: TypeAlias = "array[int]"
"""Tokens of all experts, layer by layer."""


class ExpertLoads:
    """Tokens by layer and expert over the last ``window`` turns, to the nearest eighth of it. A turn is a slice, or a
    second: whoever counts says when one is over. Counts are kept by group, such as the phase.

    Holds ``9 * layers * experts`` numbers of each group that has tokens, however many turns there are.

    Raises:
        ValueError: there are no layers or experts, or the window is shorter than its eight parts.
    """

    def __init__(self, num_layers: int, num_experts: int, window: int = 1000) -> None:
        if min(num_layers, num_experts) < 1 or window < _PARTS:
            raise ValueError(f"need layers and experts, and a window of at least {_PARTS} turns")
        self._shape = num_layers, num_experts
        self._total: dict[str, _Flat] = {}
        self._parts: deque[dict[str, _Flat]] = deque([{}])
        self._turns_per_part = window // _PARTS
        self._turns = 0
        """Of the newest part."""

    @property
    def groups(self) -> list[str]:
        """Those that have tokens in the window, in the order in which they came."""
        return list(self._total)

    def add(self, counts: Sequence[Sequence[int]], group: str = "all") -> None:
        """Count these in the present turn.

        Raises:
            ValueError: counts are of another shape or negative.
        """
        num_layers, num_experts = self._shape
        if len(counts) != num_layers or any(len(row) != num_experts for row in counts):
            raise ValueError(f"counts are not of {num_layers} layers with {num_experts} experts each")
        flat = array("q", chain.from_iterable(counts))
        if min(flat) < 0:
            raise ValueError("a count is negative")
        for counted in (self._total, self._parts[-1]):
            counted[group] = array("q", map(add, counted[group], flat)) if group in counted else flat

    def turn(self) -> None:
        """The present turn is over."""
        self._turns += 1
        if self._turns < self._turns_per_part:
            return
        self._turns = 0
        self._parts.append({})
        if len(self._parts) > _PARTS:
            for group, old in self._parts.popleft().items():
                self._total[group] = array("q", map(sub, self._total[group], old))
                if not any(group in part for part in self._parts):
                    del self._total[group]

    def counts(self, group: str | None = None) -> list[list[int]]:
        """Tokens by layer and expert, of one group or of all."""
        totals = self._total.values() if group is None else [self._total[group]] if group in self._total else []
        num_layers, size = self._shape
        flat = [sum(column) for column in zip(*totals, strict=True)] or [0] * (num_layers * size)
        return [flat[first : first + size] for first in range(0, len(flat), size)]


def balancedness(layers: Iterable[Sequence[float]]) -> float:
    """Mean over largest load, each added up over layers, as vLLM tells it: 1 if all do the same, or nothing."""
    means, largest = 0.0, 0.0
    for loads in layers:
        means += sum(loads) / len(loads)
        largest += max(loads)
    return means / largest if largest else 1.0


def utilisation(layers: Sequence[Sequence[float]]) -> float:
    """Mean over largest load of each layer, averaged, as SGLang tells it: an idle layer counts like any other."""
    return sum((sum(loads) / len(loads) + 1e-5) / (max(loads) + 1e-5) for loads in layers) / len(layers)
