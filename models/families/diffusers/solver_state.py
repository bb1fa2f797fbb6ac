"""What a scheduler of diffusers remembers between two steps, in tensors of fixed shapes and plain numbers.

A solver of several steps has lists that fill up. Here each of their places is there from the start, with zeros where
nothing is yet; how many are filled follows from the step. So a snapshot of a job has the same shape at every step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from models.families.diffusers.solvers import LISTS, SINGLES

_COUNTERS = ("lower_order_nums", "this_order")
_PREFIX = "solver."


def fresh(scheduler: Any, sample: Tensor) -> dict[str, Any]:
    """What it remembers before its first step, for samples like this one."""
    tensors = {name: torch.zeros_like(sample) for name, _ in _places(scheduler)}
    return {**tensors, **{_PREFIX + name: 0 for name in _COUNTERS if _counts(scheduler)}}


def restore(scheduler: Any, kept: Mapping[str, Any], step: int) -> None:
    """Make a scheduler whose timesteps are set what it was after so many steps."""
    if not step:
        return
    scheduler._step_index = step
    if hasattr(scheduler, "is_scale_input_called"):
        scheduler.is_scale_input_called = True
    for name, (attribute, place, back) in _places(scheduler):
        value = kept[name] if back <= step else None
        if place is None:
            setattr(scheduler, attribute, value)
        else:
            getattr(scheduler, attribute)[place] = value
    for place, back in _backwards(getattr(scheduler, "timestep_list", ())):
        scheduler.timestep_list[place] = scheduler.timesteps[step - back] if back <= step else None
    for name in _COUNTERS if _counts(scheduler) else ():
        setattr(scheduler, name, kept[_PREFIX + name])


def remembered(scheduler: Any, before: Mapping[str, Any]) -> dict[str, Any]:
    """What it remembers now; ``before``: what was kept, for places that are still empty."""
    found: dict[str, Any] = {}
    for name, (attribute, place, _) in _places(scheduler):
        value = getattr(scheduler, attribute)
        value = value if place is None else value[place]
        found[name] = before[name] if value is None else value
    return {**found, **{_PREFIX + name: getattr(scheduler, name, 0) for name in _COUNTERS if _counts(scheduler)}}


def _places(scheduler: Any) -> Iterator[tuple[str, tuple[str, int | None, int]]]:
    """Key, attribute, place in it if it is a list, and how many steps it takes until it is filled."""
    kind = type(scheduler).__name__
    for attribute in LISTS[kind]:
        for place, back in _backwards(getattr(scheduler, attribute)):
            yield f"{_PREFIX}{attribute}.{place}", (attribute, place, back)
    for attribute in SINGLES.get(kind, ()):
        yield f"{_PREFIX}{attribute}", (attribute, None, 1)


def _backwards(values: Any) -> Iterator[tuple[int, int]]:
    return ((place, len(values) - place) for place in range(len(values)))


def _counts(scheduler: Any) -> bool:
    return hasattr(scheduler, "lower_order_nums")
