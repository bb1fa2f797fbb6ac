"""How many tokens each expert got of late, in all and by phase, and how even that is over experts or ranks."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import chain
from operator import add, sub

_PARTS = 8
"""Of a window, which moves on by one of them at a time."""


class ExpertLoads:
    """Tokens by layer and expert over the last ``window`` slices of each phase, to the nearest eighth of it.

    Holds ``8 * layers * experts`` numbers of each phase, however many slices there are.

    Raises:
        ValueError: there are no layers, experts or phases, or the window is shorter than its eight parts.
    """

    def __init__(self, num_layers: int, num_experts: int, phases: Sequence[str], window: int = 1000) -> None:
        if min(num_layers, num_experts, len(phases)) < 1 or window < _PARTS:
            raise ValueError(f"need layers, experts and phases, and a window of at least {_PARTS} slices")
        self._shape = num_layers, num_experts
        self._phases = {name: _Window(num_layers * num_experts, window // _PARTS) for name in phases}

    def add(self, phase: str, counts: Sequence[Sequence[int]]) -> None:
        """Count one slice.

        Raises:
            ValueError: the phase is unknown, or counts are of another shape or negative.
        """
        if phase not in self._phases:
            raise ValueError(f"phase {phase!r} is none of {list(self._phases)}")
        num_layers, num_experts = self._shape
        if len(counts) != num_layers or any(len(row) != num_experts for row in counts):
            raise ValueError(f"counts are not of {num_layers} layers with {num_experts} experts each")
        flat = array("q", chain.from_iterable(counts))
        if min(flat) < 0:
            raise ValueError("a count is negative")
        self._phases[phase].add(flat)

    def counts(self, phase: str | None = None) -> list[list[int]]:
        """Tokens by layer and expert, of one phase or of all."""
        windows = self._phases.values() if phase is None else (self._phases[phase],)
        flat = [sum(column) for column in zip(*(window.total for window in windows), strict=True)]
        size = self._shape[1]
        return [flat[first : first + size] for first in range(0, len(flat), size)]


class _Window:
    """``total`` is the sum of ``parts``; the newest of them is being filled."""

    def __init__(self, length: int, slices_per_part: int) -> None:
        self.total = array("q", [0]) * length
        self.parts: deque[array[int]] = deque()
        self.slices_per_part = slices_per_part
        self.room = 0

    def add(self, flat: array[int]) -> None:
        if not self.room:
            if len(self.parts) == _PARTS:
                self.total = array("q", map(sub, self.total, self.parts.popleft()))
            self.parts.append(array("q", [0]) * len(flat))
            self.room = self.slices_per_part
        self.room -= 1
        self.parts[-1] = array("q", map(add, self.parts[-1], flat))
        self.total = array("q", map(add, self.total, flat))


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
