"""Where each sequence lies among packed tokens.

Legend: S sequences, L tokens of all, n sequences of a run and l tokens of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Layout(Protocol):
    """How tokens of several sequences lie in one tensor, for a network that runs on any of them."""

    def by_sequence(self, function: Callable[..., Tensor], tokens: Tensor, *values: Tensor) -> Tensor:
        """``function`` of tokens (n, l, ...) and of values (n, ...) of the same sequences, for all of them; it returns
        (n, l, ...). What does not depend on the sequence needs no layout."""
        ...


class _Batch:
    """As many tokens of each sequence: tokens are (S, l, ...)."""

    def by_sequence(self, function: Callable[..., Tensor], tokens: Tensor, *values: Tensor) -> Tensor:
        """See ``Layout``."""
        return function(tokens, *values)


BATCH: Layout = _Batch()


@dataclass(frozen=True, slots=True)
class Packed:
    """Tokens are (1, L, ...). ``runs``: how many sequences, and tokens of each, in order. Wherever sequences matter, a
    run is a batch of its own: a view of the packed tokens.

    Raises: ValueError: no run, or an empty one.
    """

    runs: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if not self.runs or min(min(run) for run in self.runs) < 1:
            raise ValueError(f"runs are {self.runs}; need at least one sequence of at least one token in each")

    @property
    def num_tokens(self) -> int:
        """L."""
        return sum(count * length for count, length in self.runs)

    def pack(self, parts: Sequence[Tensor]) -> Tensor:
        """One (n, l, ...) for each run, to (1, L, ...)."""
        return torch.cat([part.flatten(0, 1) for part in parts])[None]

    def unpack(self, tokens: Tensor) -> list[Tensor]:
        """(1, L, ...) to views (n, l, ...), one for each run."""
        parts = torch.split(tokens[0], [count * length for count, length in self.runs])
        return [part.view(*run, *part.shape[1:]) for part, run in zip(parts, self.runs, strict=True)]

    def rows(self, values: Tensor) -> tuple[Tensor, ...]:
        """(S, ...) to views (n, ...), one for each run."""
        return torch.split(values, [count for count, _ in self.runs])

    def by_sequence(self, function: Callable[..., Tensor], tokens: Tensor, *values: Tensor) -> Tensor:
        """See ``Layout``."""
        columns = [self.unpack(tokens), *(self.rows(one) for one in values)]
        return self.pack([function(*run) for run in zip(*columns, strict=True)])

    def mask(self, device: torch.device | str = "cpu") -> Tensor:
        """Which token sees which, bool (L, L): those of its own sequence. Holds all pairs; for the plain twin."""
        lengths = torch.tensor([length for count, length in self.runs for _ in range(count)], device=device)
        segment = torch.arange(len(lengths), device=device).repeat_interleave(lengths)
        return segment[:, None] == segment
