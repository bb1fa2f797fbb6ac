"""Which replica gets a request, by the experts that it wakes: of those that hold alike ones, the least loaded.

The requests of a window are split into as many groups as there are replicas, alike ones together and all groups about
as large, by k-means on sketches. A replica whose group is as much like the request as any other's, but for a ``BAND``,
is a good one, and of the good ones that with the least predicted work goes first. The bound on load is that of
``schedulers.affinity`` and comes before all else: a replica over it is not chosen, however alike.

Whether this saves anything is measured all the time, on requests that the groups have not been fitted to
(``schedulers.experts.separability``). Where it does not, the least loaded replica gets the request.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from statistics import fmean

from schedulers.affinity import BOUND, load_limit_s
from schedulers.experts.separability import Switch, expected_saving, separability
from schedulers.experts.signature import Sketch, dot, mean_sketch, similarity
from schedulers.routing import ReplicaLoad, rank

BAND = 0.2
"""Of similarity: how much less alike than the best group a replica's may be."""
_WINDOW, _REFIT = 128, 64
"""Requests that groups are fitted to, and after how many new ones."""
_ROUNDS = 6
_UNEVEN = 1.25
"""How much larger than the mean a group may be."""


class Affinity:
    """Of one router. ``tokens``: in a usual slice of a replica; ``chosen``: share of a layer's experts that a token is
    sent to. Memory is bounded: a window of sketches, and one group for each replica."""

    def __init__(self, *, tokens: float, chosen: float, switch: Switch | None = None) -> None:
        self.tokens = tokens
        self._chosen = chosen
        self._switch = switch or Switch()
        self._window: deque[Sketch] = deque(maxlen=_WINDOW)
        self._usual: Sketch = ()
        self._names: frozenset[str] = frozenset()
        self._groups: dict[str, Sketch] = {}
        self._num_new = 0
        self.separability = self.saving = 0.0
        self.num_routed = self.num_alike = 0
        """Requests that affinity was asked for while it was on, and those of them that it gave to a good replica."""

    @property
    def is_on(self) -> bool:
        """Whether requests are kept apart."""
        return self._switch.is_on

    def route(
        self, replicas: Sequence[ReplicaLoad], sketch: Sketch, added_s: float, key: str = ""
    ) -> list[ReplicaLoad]:
        """Replicas, best first, for a request that brings ``added_s`` of work; learns from it. ``key``: breaks ties.

        Raises: ValueError: a load is NaN or negative.
        """
        self._learn([replica.replica_id for replica in replicas], sketch)
        by_work = rank(replicas, key)
        if not self.is_on or len(replicas) < 2:
            return by_work
        limit_s = load_limit_s([replica.queued_s for replica in replicas], added_s, BOUND)
        alike = {name: similarity(sketch, group, self._usual) for name, group in self._groups.items()}
        best = max(alike.values(), default=0.0)

        def order(replica: ReplicaLoad) -> tuple[bool, bool]:
            is_over = replica.queued_s + added_s > limit_s
            return is_over, not is_over and alike.get(replica.replica_id, -1.0) < best - BAND

        ordered = sorted(by_work, key=order)  # stable: within each kind by work
        self.num_routed += 1
        self.num_alike += order(ordered[0]) == (False, False)
        return ordered

    def _learn(self, names: Sequence[str], sketch: Sketch) -> None:
        self._window.append(sketch)
        self._num_new += 1
        if self._num_new < _REFIT and self._names == frozenset(names):
            return
        self._names = frozenset(names)
        if self._num_new >= _REFIT:
            self._measure(list(self._window)[-self._num_new :])
            self._num_new = 0
        window = list(self._window)
        self._usual = mean_sketch(window)
        centred = [_unit(one, self._usual) for one in window]
        kept = [_unit(self._groups[name], self._usual) for name in names if name in self._groups]
        fitted = _fit(centred, window, kept, len(names))
        self._groups = dict(zip(_matched(names, self._groups, fitted, self._usual), fitted, strict=False))

    def _measure(self, fresh: Sequence[Sketch]) -> None:
        """Separability of the groups, by requests that came after they were fitted."""
        groups: dict[str, list[Sketch]] = {}
        for one in fresh:
            alike = {name: similarity(one, group, self._usual) for name, group in self._groups.items()}
            groups.setdefault(max(alike, key=alike.__getitem__, default=""), []).append(one)
        filled = [group for group in groups.values() if len(group) > 1]
        means = [mean_sketch(group) for group in filled]
        noise = [_scatter(group, mean) / len(group) for group, mean in zip(filled, means, strict=True)]
        self.separability = separability(means, self._chosen, fmean(noise) if noise else 0.0)
        self.saving = expected_saving(self.separability, self.tokens, self._chosen, len(self._groups))
        self._switch.measure(self.saving)


def _scatter(group: Sequence[Sketch], mean: Sketch) -> float:
    """Variance, all numbers together, of more than one sketch."""
    return math.fsum((a - b) ** 2 for one in group for a, b in zip(one, mean, strict=True)) / (len(group) - 1)


def _unit(sketch: Sketch, usual: Sketch) -> Sketch:
    """What it has beyond the usual one, at length 1."""
    apart = [number - mean for number, mean in zip(sketch, usual, strict=True)]
    length = math.sqrt(dot(apart, apart)) or 1.0
    return tuple(number / length for number in apart)


def _fit(units: Sequence[Sketch], window: Sequence[Sketch], kept: Sequence[Sketch], number: int) -> list[Sketch]:
    """Means of so many groups of the window, or of fewer: from the groups that there were, and from the requests that
    lie furthest apart, whichever comes out more alike."""
    starts = [kept] if len(kept) == number else []
    best = max((_grouped(units, start) for start in [*starts, _far_apart(units, number)]), key=lambda found: found[0])
    members: dict[int, list[Sketch]] = {}
    for one, group in zip(window, best[1], strict=True):
        members.setdefault(group, []).append(one)
    return [mean_sketch(members[group]) for group in sorted(members)]


def _far_apart(units: Sequence[Sketch], number: int) -> list[Sketch]:
    found = [units[-1]]
    nearest = [dot(one, found[0]) for one in units]
    while len(found) < min(number, len(units)):
        found.append(units[min(range(len(units)), key=nearest.__getitem__)])
        nearest = [max(near, dot(one, found[-1])) for near, one in zip(nearest, units, strict=True)]
    return found


def _grouped(units: Sequence[Sketch], centres: Sequence[Sketch]) -> tuple[float, list[int]]:
    """K-means by cosine with bounded groups. Returns how alike each is to its centre, added up, and the groups."""
    room = math.ceil(_UNEVEN * len(units) / len(centres))
    total, groups = -math.inf, [0] * len(units)
    for _ in range(_ROUNDS):
        alike = sorted(
            ((dot(one, centre), i, g) for i, one in enumerate(units) for g, centre in enumerate(centres)), reverse=True
        )
        left, found, score = [room] * len(centres), dict[int, int](), 0.0
        for likeness, i, g in alike:
            if i not in found and left[g]:
                found[i], score = g, score + likeness
                left[g] -= 1
        if score <= total + 1e-9:
            break
        total, groups = score, [found[i] for i in range(len(units))]
        zero = (0.0,) * len(units[0])
        members = [[one for one, group in zip(units, groups, strict=True) if group == g] for g in range(len(centres))]
        centres = [
            _unit(mean_sketch(own), zero) if own else centre for own, centre in zip(members, centres, strict=True)
        ]
    return total, groups


def _matched(names: Sequence[str], old: dict[str, Sketch], fitted: Sequence[Sketch], usual: Sketch) -> list[str]:
    """Which replica gets which group: the one whose group was most like it, so that it keeps what it holds."""
    pairs = sorted(
        ((similarity(old[name], one, usual), name, g) for name in names if name in old for g, one in enumerate(fitted)),
        reverse=True,
    )
    owners: dict[int, str] = {}
    for _, name, g in pairs:
        if g not in owners and name not in owners.values():
            owners[g] = name
    free = iter([name for name in names if name not in owners.values()])
    return [owners.get(g) or next(free) for g in range(len(fitted))]
