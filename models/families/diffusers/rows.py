"""Several requests in one pass: their blocks' states joined row by row, with a scheduler for each."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Joined:
    """Schedulers of several requests as one: each takes its own rows. Only what a step of the loop calls."""

    def __init__(
        self, schedulers: Sequence[Any], counts: Sequence[int], times: Sequence[Tensor], generators: Sequence[Any]
    ) -> None:
        self._schedulers, self._counts, self._times, self._generators = schedulers, list(counts), times, generators

    def __getattr__(self, name: str) -> Any:
        """What all have in common."""
        return getattr(self._schedulers[0], name)

    def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor:
        """Each its own rows, at its own time."""
        each = zip(self._schedulers, torch.split(sample, self._counts), self._times, strict=True)
        return torch.cat([scheduler.scale_model_input(part, time) for scheduler, part, time in each])

    def step(
        self, output: Tensor, timestep: Any, sample: Tensor, generator: Any = None, **settings: Any
    ) -> tuple[Tensor]:
        """Each its own rows, at its own time, with its own generator if one is given at all. ``generator`` has a name
        because diffusers' loops look whether a scheduler takes one; else noise would be drawn from torch's own."""
        parts = zip(torch.split(output, self._counts), torch.split(sample, self._counts), strict=True)
        mine = zip(self._schedulers, self._times, self._generators, parts, strict=True)
        after = []
        for scheduler, time, drawing, (predicted, before) in mine:
            own = {**settings, "return_dict": False}
            if generator is not None and "generator" in inspect.signature(scheduler.step).parameters:
                own["generator"] = drawing
            after.append(scheduler.step(predicted, time, before, **own)[0])
        return (torch.cat(after),)


def time_of_rows(times: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """The time that a step of the loop is told: one number, or one for each row where they differ."""
    if all(torch.equal(time, times[0]) for time in times):
        return times[0]
    return torch.cat([time.expand(count) for time, count in zip(times, counts, strict=True)])


def joined(
    states: Sequence[Mapping[str, Any]], counts: Sequence[int], alone: Sequence[str], padded: Sequence[str] = ()
) -> dict[str, Any]:
    """Values of several states as those of one. ``alone``: names of tensors whose first dimension is no row; they and
    all plain values are the same in each. ``padded``: names of texts and their masks, whose second dimension may differ
    and is filled with zeros."""
    found: dict[str, Any] = {}
    for name, first in states[0].items():
        values = [state[name] for state in states]
        if isinstance(first, Mapping):
            found[name] = joined(values, counts, alone, padded)
        elif name not in alone and _are_rows(values, counts):
            found[name] = torch.cat(_padded(values) if name in padded else values)
        else:
            found[name] = first
    return found


def _are_rows(values: Sequence[Any], counts: Sequence[int]) -> bool:
    return isinstance(values[0], Tensor) and values[0].ndim > 0 and [len(value) for value in values] == list(counts)


def _padded(values: Sequence[Tensor]) -> list[Tensor]:
    length = max(value.shape[1] for value in values)
    return [F.pad(value, (0, 0) * (value.ndim - 2) + (0, length - value.shape[1])) for value in values]
