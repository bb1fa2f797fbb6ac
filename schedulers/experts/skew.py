"""Which tenants make slices slow because their tokens pile up on few experts, and what that costs them.

Experts are spread over ranks, and a layer takes as long as its fullest rank. Of every tenant there is a *profile*: by
layer, which part of its tokens each rank gets, over a window of its last slices. From profiles follows how far the
fullest rank of a slice would be over the mean (``imbalance``, 0 where all ranks get the same), and how much longer the
slice takes for it: ``1 + weight * imbalance``, where the weight, the part of a slice that experts take, is learnt from
slices.

A slice is paid for by tenants. Its even part is shared by work, as ever. The rest is paid by those whose tokens lie on
the fullest ranks beyond an even part of them (``shares``), so a tenant that hits one expert with everything pays for
the whole delay, and the others for none of it. It pays ``SURCHARGE`` times the delay: all who wait lose that time, not
it alone, and with the bare time as its price it would take an equal share of the replica in slices many times as long
as anybody else's. It does not join a slice that it would delay either; it leads slices of its own when it is its turn.

With one rank there is nothing to spread: nobody is slow and nobody pays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Protocol, TypeAlias

Loads: TypeAlias = Sequence[Sequence[int]]
"""Tokens by layer and expert."""
Profile: TypeAlias = list[list[float]]
"""By layer and rank; the parts of a layer add up to 1."""

SURCHARGE = 2.0
"""What a second of delay costs, in seconds."""
TOLERANCE = 0.1
"""How much slower others may become by a unit that joins them."""
_MAX_TENANTS = 64
_KEEP = 0.97
"""Of a profile, at the next slice: a window of some thirty slices."""
_PRIOR, _USUAL_WEIGHT = 0.05, 0.5
"""How much imbalance outweighs the guess that half of a slice are experts."""


class Spread(Protocol):
    """Which ranks have which experts: ``schedulers.experts.placement``."""

    @property
    def num_ranks(self) -> int:
        """Processes that work on a slice together."""
        ...

    def rank_loads(self, layer: int, counts: Sequence[int]) -> Sequence[float]:
        """Tokens that each rank works on."""
        ...


class LoadSkew:
    """Of one replica. ``where``: which ranks have the experts now; None where one has all. Memory is bounded: profiles
    of the tenants that ran last, which begin anew when experts have moved."""

    def __init__(self, where: Callable[[], Spread | None] = lambda: None) -> None:
        self._where = where
        self._spread: Spread | None = None
        self._profiles: dict[str, Profile] = {}
        self._memo: dict[tuple[tuple[str, float], ...], list[list[float]]] = {}
        self._weights_seen = self._mean_x = self._mean_y = self._xx = self._xy = 0.0

    def took(self, tenant: str, loads: Loads) -> None:
        """A tenant's row of a slice sent its tokens there. Nothing where there is one rank, or no token."""
        spread = self._where()
        if spread is not self._spread:
            self._spread = spread
            self._profiles.clear()
        self._memo.clear()
        if spread is None or spread.num_ranks < 2:
            return
        ranks = [spread.rank_loads(layer, counts) for layer, counts in enumerate(loads)]
        if not all(map(any, ranks)):
            return
        new = [[load / total for load in layer] for layer in ranks for total in [sum(layer)]]
        if (old := self._profiles.pop(tenant, None)) is not None:
            new = [
                [_KEEP * a + (1.0 - _KEEP) * b for a, b in zip(was, now, strict=True)]
                for was, now in zip(old, new, strict=True)
            ]
        self._profiles[tenant] = new  # the last one now
        if len(self._profiles) > _MAX_TENANTS:
            del self._profiles[next(iter(self._profiles))]

    def imbalance(self, rows: Sequence[tuple[str, float]]) -> float:
        """Of a slice with these rows, each a tenant and its tokens: fullest rank over the mean, less 1, the mean of
        layers. A tenant without a profile counts as even."""
        ranks = self._ranks(rows)
        tokens = sum(number for _, number in rows)
        if not ranks or not tokens:
            return 0.0
        return max(0.0, sum(max(layer) * len(layer) for layer in ranks) / (len(ranks) * tokens) - 1.0)

    def slowdown(self, rows: Sequence[tuple[str, float]]) -> float:
        """How many times as long a slice with these rows takes as one whose ranks all get the same."""
        return 1.0 + self.weight * self.imbalance(rows) if self._profiles else 1.0

    def delays(self, rows: Sequence[tuple[str, float]], newcomer: tuple[str, float]) -> bool:
        """Whether a row that joined these would make them slower than its tokens alone do."""
        if not self._profiles:
            return False
        return self.slowdown([*rows, newcomer]) > (1.0 + TOLERANCE) * self.slowdown(rows)

    def shares(
        self, rows: Sequence[tuple[str, float]], parts: Sequence[float], surcharge: float = SURCHARGE
    ) -> list[float]:
        """What each row pays, in slices: 1 in all without a delay or a surcharge. ``parts``: by work, 1 in all."""
        ranks = self._ranks(rows)
        extra = self.weight * self.imbalance(rows)
        if not ranks or not extra:
            return list(parts)
        fullest = [layer.index(max(layer)) for layer in ranks]
        beyond = [max(0.0, self._beyond(tenant, fullest)) * tokens for tenant, tokens in rows]
        total = sum(beyond) or 1.0
        return [
            (part + surcharge * extra * over / total) / (1.0 + extra) for part, over in zip(parts, beyond, strict=True)
        ]

    @property
    def weight(self) -> float:
        """The part of an even slice that experts take, as far as slices have shown."""
        scatter = self._xx - self._mean_x**2
        slope = (self._xy - self._mean_x * self._mean_y + _PRIOR * _USUAL_WEIGHT) / (scatter + _PRIOR)
        even = self._mean_y - slope * self._mean_x if self._weights_seen else 1.0
        return min(1.0, max(0.0, slope / even)) if even > 0.0 else 1.0

    def observe(self, rows: Sequence[tuple[str, float]], ratio: float) -> None:
        """A slice with these rows took ``ratio`` times what an even one was predicted to take."""
        if not self._profiles:
            return
        x = self.imbalance(rows)
        self._weights_seen = min(64.0, self._weights_seen + 1.0)
        step = 1.0 / self._weights_seen
        self._mean_x += step * (x - self._mean_x)
        self._mean_y += step * (ratio - self._mean_y)
        self._xx += step * (x * x - self._xx)
        self._xy += step * (x * ratio - self._xy)

    def _beyond(self, tenant: str, fullest: Sequence[int]) -> float:
        """By how much a tenant's part of the fullest ranks is over an even one, all layers together."""
        profile = self._profiles.get(tenant)
        if profile is None:
            return 0.0
        return sum(layer[rank] - 1.0 / len(layer) for layer, rank in zip(profile, fullest, strict=True))

    def _ranks(self, rows: Sequence[tuple[str, float]]) -> list[list[float]]:
        """Tokens of each rank, by layer; empty while nothing is known."""
        first = next(iter(self._profiles.values()), None)
        if first is None:
            return []
        by_tenant: dict[str, float] = {}
        for tenant, tokens in rows:
            name = tenant if tenant in self._profiles else ""
            by_tenant[name] = by_tenant.get(name, 0.0) + tokens
        key = tuple(sorted(by_tenant.items()))
        if (known := self._memo.get(key)) is not None:
            return known
        sums = [[0.0] * len(layer) for layer in first]
        for tenant, tokens in by_tenant.items():
            profile = self._profiles.get(tenant) or [list(repeat(1.0 / len(layer), len(layer))) for layer in first]
            for own, layer in zip(sums, profile, strict=True):
                for rank, part in enumerate(layer):
                    own[rank] += tokens * part
        if len(self._memo) < 4 * _MAX_TENANTS:
            self._memo[key] = sums
        return sums
