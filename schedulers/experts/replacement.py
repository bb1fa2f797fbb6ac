"""From one placement to the next while requests are served, a few layers at a time.

    idle      a target is proposed; layers that pay are found, and as many of them taken as fit beside what there is
    fetching  each rank gets the weights it will lack, beside the steps that run; nothing uses them yet
    fetched   all ranks have them; at the next step boundary the placement is switched
    draining  requests that began before finish on the placement that they began with; then its weights are let go

Then the next layers of the same target, or of a newer one. A layer *pays* if its fullest rank would get so much less
to do that the time saved within ``horizon_s`` is more than copying costs. So a placement that is hardly better is not
worth moving to, and one that flickers is not followed.

``handle(now_s, *events) -> list[Decision]``, without a clock, like every machine of this package. A fetch that fails is
tried again after ``retry_s``. Once a rank is lost, what was fetched is discarded, and nothing is replaced any more: the
group of ranks ends with its rank, and a new one begins with a new machine.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal, NamedTuple, TypeAlias

from schedulers.experts.placement import Move, Placement, check_same_shape


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplacementConfig:
    """``expert_bytes``: one expert of one layer. ``bytes_per_s``: what a rank receives or sends at most, on average.
    ``max_staged_bytes``: what a rank has room for beside its slots. ``expert_share``: of a step, the time of experts.
    ``copy_slowdown``: by what part steps are slower while weights are copied. ``min_gain``: of the largest load over
    the mean. ``num_nodes``: of successive ranks each, among which copies are better avoided.

    Raises:
        ValueError: a number is not as it must be.
    """

    expert_bytes: int
    bytes_per_s: float
    max_staged_bytes: int
    horizon_s: float = 60.0
    expert_share: float = 0.5
    copy_slowdown: float = 0.1
    min_gain: float = 0.02
    retry_s: float = 5.0
    num_nodes: int = 1

    def __post_init__(self) -> None:
        if self.expert_bytes < 1 or not self.bytes_per_s > 0.0:
            raise ValueError("expert_bytes and bytes_per_s must be positive")
        rest = (self.horizon_s, self.expert_share, self.copy_slowdown, self.min_gain, self.retry_s)
        if not all(number >= 0.0 for number in rest):
            raise ValueError("horizon_s, expert_share, copy_slowdown, min_gain and retry_s must be >= 0")


# -- events ----------------------------------------------------------------------------------------------------------


class Proposed(NamedTuple):
    """A ``target``, and tokens ``counts[layer][expert]`` to judge it by: best those that came after the ones that it
    was made for, since it fits their accidents, too. A newer proposal takes the place of an older one."""

    target: Placement
    counts: Sequence[Sequence[int]]


class Fetched(NamedTuple):
    """All ranks have what they need for this version."""

    version: int


class FetchFailed(NamedTuple):
    """Some rank could not get what it needs for this version."""

    version: int


class Boundary(NamedTuple):
    """No step runs right now."""


class RequestStarted(NamedTuple):
    """It stays with the placement that there is now."""

    request: Hashable


class RequestEnded(NamedTuple):
    """However it ended."""

    request: Hashable


class RankLost(NamedTuple):
    """A process of the group is gone."""


Event: TypeAlias = Proposed | Fetched | FetchFailed | Boundary | RequestStarted | RequestEnded | RankLost

# -- decisions -------------------------------------------------------------------------------------------------------


class Fetch(NamedTuple):
    """Copy these weights, beside the slots in use, for this placement."""

    placement: Placement
    moves: tuple[Move, ...]


class Switch(NamedTuple):
    """New requests use this placement from now on; the old slots stay for those under way."""

    placement: Placement


class Free(NamedTuple):
    """Nobody uses what this version alone had in its slots."""

    version: int


class Discard(NamedTuple):
    """Let go of what was fetched for this version; it will not be used."""

    version: int


Decision: TypeAlias = Fetch | Switch | Free | Discard

# -- the machine -----------------------------------------------------------------------------------------------------


class Replacement:
    """``placement``: what requests that start now use.

    Raises:
        ValueError: a rank has no room for all slots of one layer.
    """

    def __init__(self, placement: Placement, config: ReplacementConfig) -> None:
        if config.max_staged_bytes < placement.slots_per_rank * config.expert_bytes:
            raise ValueError(
                f"max_staged_bytes is {config.max_staged_bytes}; the slots of a rank in one layer take "
                f"{placement.slots_per_rank * config.expert_bytes}"
            )
        self.placement = placement
        self.state: Literal["idle", "fetching", "fetched", "draining"] = "idle"
        self.is_rank_lost = False
        self._config = config
        self._now_s = -math.inf
        self._wanted: Proposed | None = None
        self._next: Fetch | None = None
        self._last_version = self._replaced = placement.version
        self._next_fetch_s = -math.inf
        self._version_of: dict[Hashable, int] = {}

    def handle(self, now_s: float, *events: Event) -> list[Decision]:
        """Take events, in order.

        Raises:
            ValueError: time runs backwards, a request starts twice or ends without having started, or a target is of
                another shape. Events before the bad one count; decisions that they led to are lost.
        """
        if not now_s >= self._now_s:
            raise ValueError(f"time runs backwards, from {self._now_s} to {now_s}")
        self._now_s = now_s
        decisions = [decision for event in events for decision in self._take(event)]
        return [*decisions, *self._free(), *self._fetch()]

    def next_wakeup_s(self) -> float | None:
        """When to call ``handle`` though nothing happened; None if only events matter."""
        return self._next_fetch_s if self.state == "idle" and self._wanted is not None else None

    def version_of(self, request: Hashable) -> int:
        """With which version a request began, and will end."""
        return self._version_of[request]

    def check_invariants(self) -> None:
        """Raises: AssertionError: states, versions or limits contradict each other."""
        assert (self._next is not None) == (self.state in ("fetching", "fetched"))
        old = {version for version in self._version_of.values() if version != self.placement.version}
        assert len(old) == (self.state == "draining"), "two placements are in use at most"
        assert all(version < self.placement.version <= self._last_version for version in old)
        if self._next is not None:
            assert not self.is_rank_lost
            assert self._next.placement.version == self._last_version > self.placement.version
            assert max(_received(self._next.moves, self.placement)) <= self._config.max_staged_bytes // (
                self._config.expert_bytes
            )

    def _take(self, event: Event) -> Iterator[Decision]:
        match event:
            case Proposed(target, counts):
                check_same_shape(self.placement, target)
                if [len(row) for row in counts] != [target.num_experts] * target.num_layers:
                    raise ValueError("counts are not of each layer and expert")
                self._wanted = None if self.is_rank_lost else event
            case Fetched(version) if self.state == "fetching" and version == self._last_version:
                self.state = "fetched"
            case FetchFailed(version) if self.state == "fetching" and version == self._last_version:
                self._next_fetch_s = max(self._next_fetch_s, self._now_s + self._config.retry_s)
                yield self._discarded()
            case Boundary() if self.state == "fetched" and self._next is not None:
                self._replaced = self.placement.version
                self.placement, self._next, self.state = self._next.placement, None, "draining"
                yield Switch(self.placement)
                yield from self._free()
            case RequestStarted(request):
                if request in self._version_of:
                    raise ValueError(f"request {request!r} started twice")
                self._version_of[request] = self.placement.version
            case RequestEnded(request):
                if self._version_of.pop(request, None) is None:
                    raise ValueError(f"request {request!r} ended without having started")
            case RankLost():
                self.is_rank_lost, self._wanted = True, None
                if self._next is not None:
                    yield self._discarded()

    def _discarded(self) -> Discard:
        self._next, self.state = None, "idle"
        return Discard(self._last_version)

    def _free(self) -> Iterator[Decision]:
        """Once nobody uses the placement before the last switch."""
        if self.state == "draining" and all(v == self.placement.version for v in self._version_of.values()):
            self.state = "idle"
            yield Free(self._replaced)

    def _fetch(self) -> Iterator[Decision]:
        """The layers that pay best, as many as there is room for."""
        if self.state != "idle" or self._wanted is None or self._now_s < self._next_fetch_s:
            return
        taken = self._taken(self._wanted)
        if not taken:
            self._wanted = None
            return
        target, size = self._wanted.target, self.placement.slots_per_rank
        slots = [target.slots[layer] if layer in taken else old for layer, old in enumerate(self.placement.slots)]
        moves = tuple(move for layer in sorted(taken) for move in taken[layer])
        self._last_version += 1
        self._next = Fetch(replace(self.placement, version=self._last_version, slots=tuple(slots)), moves)
        self.state = "fetching"
        seconds = _busiest(moves, size) * self._config.expert_bytes / self._config.bytes_per_s
        self._next_fetch_s = self._now_s + seconds
        yield self._next

    def _taken(self, wanted: Proposed) -> dict[int, list[Move]]:
        """Moves by layer."""
        paying = worth_it(self.placement, wanted.target, wanted.counts, self._config)
        room = self._config.max_staged_bytes // self._config.expert_bytes
        received, taken = [0] * self.placement.num_ranks, {}
        for layer, moves in paying.items():
            more = [a + b for a, b in zip(received, _received(moves, self.placement), strict=True)]
            if max(more) <= room:
                received, taken[layer] = more, moves
        return taken


def worth_it(
    current: Placement, target: Placement, counts: Sequence[Sequence[int]], config: ReplacementConfig
) -> dict[int, list[Move]]:
    """Layers that pay, with their moves: those that save most for each move first."""
    by_layer: dict[int, list[Move]] = {}
    for move in current.moves_to(target, config.num_nodes):
        by_layer.setdefault(move.layer, []).append(move)
    fullest = [max(current.rank_loads(layer, row)) for layer, row in enumerate(counts)]
    saved_per_token = config.horizon_s * config.expert_share / (sum(fullest) or 1.0)
    rates: dict[int, float] = {}
    for layer, moves in by_layer.items():
        less = fullest[layer] - max(target.rank_loads(layer, counts[layer]))
        seconds = _busiest(moves, current.slots_per_rank) * config.expert_bytes / config.bytes_per_s
        saved_s = saved_per_token * less - config.copy_slowdown * seconds
        if saved_s > 0.0 and less * current.num_ranks >= config.min_gain * sum(counts[layer]):
            rates[layer] = saved_s / len(moves)
    return {layer: by_layer[layer] for layer in sorted(rates, key=rates.__getitem__, reverse=True)}


def _busiest(moves: Sequence[Move], slots_per_rank: int) -> int:
    """Experts that the rank with most to receive or to send does so with; what stays on its rank is free."""
    received: Counter[int] = Counter()
    sent: Counter[int] = Counter()
    for move in moves:
        source, rank = move.source // slots_per_rank, move.slot // slots_per_rank
        if source != rank:
            received[rank] += 1
            sent[source] += 1
    return max(chain(received.values(), sent.values()), default=0)


def _received(moves: Sequence[Move], placement: Placement) -> list[int]:
    """Experts that each rank has to find room for."""
    received = [0] * placement.num_ranks
    for move in moves:
        received[placement.rank_of(move.slot)] += 1
    return received
