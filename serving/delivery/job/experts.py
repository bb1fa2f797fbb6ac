"""What the experts of a model are sent, as a replica counts it and as gateways add it up. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from schedulers.experts.loads import balancedness

Counts: TypeAlias = npt.NDArray[np.int64]
"""Tokens by layer and expert."""
WINDOW_S: Final = 60.0
"""So far back all counts go, more or less: seconds are counted up, and forgotten, by eights."""
BANDS: Final = ("first", "middle", "last")
"""Thirds of the layers."""


def load_ratios(counts: Counts) -> dict[str, float]:
    """By band of layers, the load of the busiest expert over the mean."""
    bands = zip(BANDS, np.array_split(counts, len(BANDS)), strict=True)
    return {name: 1.0 / balancedness(part.tolist()) for name, part in bands if part.any()}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedFacts:
    """What can be told of a placement. ``moves``: slots that were given another expert, since the start. ``failed``:
    placements that were given up. ``rank_loads``: of the tokens of late, the part that each rank works on."""

    version: int
    num_ranks: int
    num_slots: int
    moves: int
    failed: int
    rank_loads: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertReport:
    """Of one replica, over the last ``WINDOW_S``. ``distinct``: experts that a layer woke in a slice, the mean of
    layers, added up over ``slices``. ``phases``: halves of the steps, early and late. ``placed``: None where one
    process has all experts."""

    slices: int = 0
    distinct: float = 0.0
    phases: Mapping[str, Counts] = field(default_factory=dict)
    tenants: Mapping[str, Counts] = field(default_factory=dict)
    placed: PlacedFacts | None = None


def added(counts: Sequence[Mapping[str, Counts]]) -> dict[str, Counts]:
    """By name, the sum."""
    total: dict[str, Counts] = {}
    for mapping in counts:
        for name, one in mapping.items():
            total[name] = total[name] + one if name in total else one
    return total
