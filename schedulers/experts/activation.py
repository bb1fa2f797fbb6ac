"""Which replica of each expert works in a step, so that no rank reads the weights of more experts than it must.

A small batch takes as long as weights are read: a rank with twelve of its experts awake is slower than one with
eight, however few tokens each gets. So an expert works on one rank alone, and ranks are to have as equal a *number* of
awake experts as can be (the idea of METRO, arXiv 2512.09277; this algorithm is ours). Experts with fewest ranks to
choose from are given out first, each to the rank with fewest so far; then experts change ranks along shortest chains
until the fullest rank has as few as is possible at all.

A large batch takes as long as tokens are multiplied, and then it is better to share an expert's tokens among all of its
replicas. ``tokens_per_read`` says where the one ends and the other begins, and the faster choice is taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

Chosen: TypeAlias = list[tuple[int, ...]]
"""Of each expert, those of its slots that share its tokens in this step; of one without tokens, any."""


class _Layer(NamedTuple):
    """Of a layer that is placed: what every choice begins with.

    ``every``: all slots of each expert. ``first``: one of them. ``fixed``: expert and rank, where there is one rank.
    ``free``: expert, and a slot by rank, where there are several: those with fewest first.
    """

    every: Chosen
    first: Chosen
    fixed: list[tuple[int, int]]
    free: list[tuple[int, dict[int, int]]]
    slots_per_rank: int


def choose(
    slots: Sequence[int], tokens: Sequence[int], num_ranks: int, tokens_per_read: float = math.inf
) -> Sequence[tuple[int, ...]]:
    """Slots that share the tokens of each expert, for a layer whose slots hold these experts.

    ``tokens_per_read``: how many tokens a rank multiplies with an expert in the time in which it reads its weights.
    """
    layer = _layer(tuple(slots), len(tokens), num_ranks)
    fewest = _fewest_awake(layer, tokens, num_ranks)
    if math.isinf(tokens_per_read):
        return fewest
    return min(fewest, layer.every, key=lambda chosen: _reads(layer, chosen, tokens, num_ranks, tokens_per_read))


def num_awake(chosen: Sequence[Sequence[int]], tokens: Sequence[int], num_ranks: int, num_slots: int) -> list[int]:
    """Of each rank, how many slots have tokens. Tokens go to an expert's slots in turn, so that few reach few."""
    size, awake = num_slots // num_ranks, [0] * num_ranks
    for count, slots in zip(tokens, chosen, strict=True):
        for slot in slots[:count]:
            awake[slot // size] += 1
    return awake


@lru_cache(maxsize=512)
def _layer(slots: tuple[int, ...], num_experts: int, num_ranks: int) -> _Layer:
    size = len(slots) // num_ranks
    every: list[list[int]] = [[] for _ in range(num_experts)]
    for slot, expert in enumerate(slots):
        every[expert].append(slot)
    on_ranks = [{slot // size: slot for slot in reversed(found)} for found in every]
    free = [(expert, places) for expert, places in enumerate(on_ranks) if len(places) > 1]
    return _Layer(
        every=list(map(tuple, every)),
        first=[(found[0],) for found in every],
        fixed=[(expert, next(iter(places))) for expert, places in enumerate(on_ranks) if len(places) == 1],
        free=sorted(free, key=lambda entry: len(entry[1])),
        slots_per_rank=size,
    )


def _fewest_awake(layer: _Layer, tokens: Sequence[int], num_ranks: int) -> Chosen:
    awake, work = [0] * num_ranks, [0] * num_ranks
    for expert, rank in layer.fixed:
        if tokens[expert]:
            awake[rank] += 1
            work[rank] += tokens[expert]
    given: list[dict[int, dict[int, int]]] = [{} for _ in range(num_ranks)]
    for expert, places in layer.free:
        if not (count := tokens[expert]):
            continue
        best = -1
        for rank in places:
            if best < 0 or awake[rank] < awake[best] or (awake[rank] == awake[best] and work[rank] < work[best]):
                best = rank
        awake[best] += 1
        work[best] += count
        given[best][expert] = places
    _even_out(awake, given)
    chosen = layer.first.copy()
    for rank, experts in enumerate(given):
        for expert, places in experts.items():
            chosen[expert] = (places[rank],)
    return chosen


def _even_out(awake: list[int], given: list[dict[int, dict[int, int]]]) -> None:
    """Lower the fullest ranks until one of them cannot give anything away: then no choice has a lower maximum."""
    while True:
        most = max(awake)
        if most * len(awake) - sum(awake) < len(awake):  # as even as whole numbers can be
            return
        for rank, number in enumerate(awake):
            if number == most and not _give_away(rank, awake, given):
                return


def _give_away(start: int, awake: list[int], given: list[dict[int, dict[int, int]]]) -> bool:
    """One expert less on a rank, one more on a rank with at least two less; those between pass one on."""
    came_from = {start: (start, -1)}
    reached = [start]
    for rank in reached:
        for expert, places in given[rank].items():
            for other in places:
                if other in came_from:
                    continue
                came_from[other] = (rank, expert)
                if awake[other] <= awake[start] - 2:
                    awake[start] -= 1
                    awake[other] += 1
                    while other != start:
                        before, moved = came_from[other]
                        given[other][moved] = given[before].pop(moved)
                        other = before
                    return True
                reached.append(other)
    return False


def _reads(
    layer: _Layer, chosen: Chosen, tokens: Sequence[int], num_ranks: int, tokens_per_read: float
) -> tuple[float, int]:
    """How long the slowest rank takes, in reads of an expert; then, how many are read in all."""
    size, work = layer.slots_per_rank, [0.0] * num_ranks
    awake = num_awake(chosen, tokens, num_ranks, size * num_ranks)
    for count, slots in zip(tokens, chosen, strict=True):
        for slot in slots if count else ():
            work[slot // size] += count / len(slots)
    return max(map(max, awake, (tokens / tokens_per_read for tokens in work))), sum(awake)
