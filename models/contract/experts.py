"""Jobs whose networks are mixtures of experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable


@runtime_checkable
class Experts(Protocol):
    """A job whose network sends its tokens to experts, and counts them."""

    @property
    def expert_shape(self) -> tuple[int, int]:
        """Layers that have experts, and experts of each."""
        ...

    def take_loads(self) -> Sequence[Any]:
        """How many tokens each state of the last denoising slice sent to which expert: one array int64 (layers,
        experts) a state, in their order. Taken once, on the thread that ran the slice; slices of other phases, which
        may run meanwhile, change nothing."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertFacts:
    """What a client may know of a mixture of experts.

    ``layers``: those that have experts. ``experts``: of a layer, those that tokens choose from. ``chosen``: of them, by
    a token at most. ``shared``: further ones that every token meets. ``parameters``: of the network that is routed, and
    ``active_parameters``: of them, those that a token meets.
    """

    layers: int
    experts: int
    chosen: int
    shared: int = 0
    parameters: int
    active_parameters: int

    @property
    def expert_parameters(self) -> int:
        """Of one expert of one layer, at least 1: what a token does not meet is the experts that it did not choose."""
        return max(1, (self.parameters - self.active_parameters) // max(1, self.layers * (self.experts - self.chosen)))


Slots: TypeAlias = Sequence[Sequence[int]]
"""Of each layer, the expert in each slot; with R ranks, rank r has the r-th part of the slots."""
Move: TypeAlias = tuple[int, int, int, int]
"""Layer, expert, slot that has it, and slot that gets it."""
Choose: TypeAlias = Callable[[Sequence[int], Sequence[int], int], Sequence[Sequence[int]]]
"""(experts in a layer's slots, tokens of each expert, number of ranks) -> of each expert, those of its slots that share
its tokens in this step."""


@runtime_checkable
class PlacedExperts(Protocol):
    """A ``Parallel`` job each of whose ranks has a part of the experts, some of them perhaps on several. All ranks are
    called alike; where experts are changes nothing of what comes out."""

    def place(self, slots: Slots, choose: Choose | None = None) -> None:
        """After ``spread``, once: keep the experts of this rank's slots alone. ``choose``: where each expert runs in a
        step; None: in all its slots. Raises: ValueError: slots that cannot be held."""
        ...

    def fetch(self, slots: Slots, moves: Sequence[Move]) -> None:
        """On another thread, beside steps: get what this rank will lack, from ranks that have it, and keep it apart.
        Raises: ValueError, RuntimeError: nothing has changed."""
        ...

    def switch(self) -> None:
        """Between two steps: what was fetched is in place."""
        ...
