"""How much dearer parameters alone make a request that is allowed: the worst point over the usual one.

No attack is needed for this, and none of it can be refused: admission has to see it coming and to price it. Work is
counted by the family's own ``work``, as the planner counts it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from models.contract import Family, Knob, SettingError, Value, Variant

_ROUND = (50.0, 100.0, 200.0)
"""What a sampler takes at most is often such a number, below the end of the knob."""


@dataclass(frozen=True, kw_only=True)
class Dearest:
    """``usual`` and ``worst``: operations (multiply-adds). ``bytes_usual``, ``bytes_worst``: held at most."""

    settings: Mapping[str, Value]
    request: Any
    usual: float
    worst: float
    bytes_usual: int
    bytes_worst: int

    @property
    def amplification(self) -> float:
        """Of operations."""
        return self.worst / self.usual


def dearest(family: Family, variant: Variant, requests: list[Any]) -> Dearest:
    """Over the ends of every knob and ``requests``, of which the first is the usual one."""
    assert family.work is not None
    work, family = family.work.load(), family.of(variant)
    usual = work(variant, requests[0], family.check_point({}))
    best: tuple[float, Any, Any, Any] | None = None
    for request, point in itertools.product(requests, _corners(family)):
        if not _is_allowed(family, variant, request, point):
            continue
        made = work(variant, request, point)
        if best is None or made.units["macs"] > best[0]:
            best = (made.units["macs"], point, request, made)
    assert best is not None, f"{variant.id} allows no point at all"
    return Dearest(
        settings=best[1],
        request=best[2],
        usual=usual.units["macs"],
        worst=best[0],
        bytes_usual=usual.bytes_held,
        bytes_worst=best[3].bytes_held,
    )


def _corners(family: Family) -> Iterator[dict[str, Value]]:
    """Every combination of knobs: their values, or their ends, their grid and some round numbers between."""
    axes = [[(knob.name, value) for value in _values(knob)] for knob in family.knobs]
    for choice in itertools.product(*axes):
        yield dict(choice)


def _is_allowed(family: Family, variant: Variant, request: Any, point: dict[str, Value]) -> bool:
    if family.allowed is None:
        return True
    try:
        family.allowed.load()(variant, request, family.check_point(point))
    except SettingError:
        return False
    return True


def _values(knob: Knob) -> list[Value]:
    if knob.low is None or knob.high is None:
        return list(dict.fromkeys((*knob.values, *knob.grid, knob.default)))
    low, high = knob.low, knob.high
    numbers = {low, high, *(float(value) for value in (knob.default, *knob.grid))}
    numbers |= {value for value in _ROUND if low <= value <= high}
    return [int(value) if knob.is_integer else value for value in sorted(numbers)]
