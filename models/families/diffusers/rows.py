"""Several requests in one pass: their blocks' states joined row by row, with a scheduler for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Joined:
    """Schedulers of several requests as one: each takes its own rows. Only what a step of the loop calls."""

    def __init__(self, schedulers: Sequence[Any], counts: Sequence[int], generators: Sequence[Any]) -> None:
        self._schedulers, self._counts, self._generators = schedulers, list(counts), generators

    def __getattr__(self, name: str) -> Any:
        """What all have in common."""
        return getattr(self._schedulers[0], name)

    def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor:
        """Each its own."""
        parts = torch.split(sample, self._counts)
        return torch.cat([s.scale_model_input(p, timestep) for s, p in zip(self._schedulers, parts, strict=True)])

    def step(self, output: Tensor, timestep: Any, sample: Tensor, **settings: Any) -> tuple[Tensor]:
        """Each its own rows, with its own generator if one is given at all."""
        outputs, samples = torch.split(output, self._counts), torch.split(sample, self._counts)
        after = []
        for scheduler, generator, one, other in zip(self._schedulers, self._generators, outputs, samples, strict=True):
            own = {**settings, "return_dict": False}
            if own.get("generator") is not None:
                own["generator"] = generator
            after.append(scheduler.step(one, timestep, other, **own)[0])
        return (torch.cat(after),)


def joined(states: Sequence[Mapping[str, Any]], counts: Sequence[int], alone: Sequence[str]) -> dict[str, Any]:
    """Values of several states as those of one. ``alone``: names of tensors whose first dimension is no row; they and
    all plain values are the same in each."""
    return {
        name: value if name in alone else _joined([state[name] for state in states], counts, alone)
        for name, value in states[0].items()
    }


def _joined(values: Sequence[Any], counts: Sequence[int], alone: Sequence[str]) -> Any:
    first = values[0]
    if isinstance(first, Mapping):
        return joined(values, counts, alone)
    is_row = isinstance(first, Tensor) and first.ndim and [len(value) for value in values] == list(counts)
    return torch.cat(list(values)) if is_row else first
