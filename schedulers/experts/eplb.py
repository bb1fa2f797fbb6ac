"""How many replicas each expert gets and on which ranks: DeepSeek's expert parallelism load balancer (EPLB).

The algorithm of github.com/deepseek-ai/EPLB, written anew. Every expert has one replica; each further slot goes to the
expert with the most tokens for each replica. Then the replicas are packed: the heaviest first, each to the rank with
the least so far that has a slot free. *Hierarchical*, where the groups of experts can be divided evenly among the
nodes: groups are packed to nodes first, and the rest happens inside each node, so that group-limited routing stays
there. Else *global*: one group, one node. Loads are rounded to float32 where the original rounds them, so that ties
break alike and the result is the same to the slot.

What the original does not do: given the placement there is, packs go to the ranks that hold most of their experts
already, and an expert that stays on its rank stays in its slot. Neither changes any rank's load.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from heapq import heapify, heappop, heapreplace

from schedulers.experts.placement import Placement, check_slots

_Packs = list[list[int]]
"""Experts of each rank, or of each node."""


def eplb(
    counts: Sequence[Sequence[int]],
    num_slots: int,
    num_ranks: int,
    *,
    num_groups: int = 1,
    num_nodes: int = 1,
    current: Placement | None = None,
) -> Placement:
    """A balanced placement for ``counts[layer][expert]`` tokens; of the next version if it differs from ``current``.

    ``num_groups``: groups of successive experts that routing selects among. ``num_nodes``: of successive ranks each.

    Raises:
        ValueError: a number is negative or does not divide another as it must, or ``current`` is of another shape.
    """
    num_experts = len(counts[0]) if counts else 0
    _check(counts, num_experts, num_slots, num_ranks, num_groups, num_nodes)
    if num_groups % num_nodes:
        num_groups = num_nodes = 1
    layers = [_layer(row, num_slots, num_ranks, num_groups, num_nodes) for row in counts]
    if current is None:
        return Placement(1, num_experts, num_ranks, tuple(map(_flat, layers)))
    if (current.num_layers, current.num_experts, current.num_ranks, current.num_slots) != (
        len(counts),
        num_experts,
        num_ranks,
        num_slots,
    ):
        raise ValueError("the current placement has other numbers of layers, experts, ranks or slots")
    slots = tuple(_settled(current, layer, ranks, num_nodes) for layer, ranks in enumerate(layers))
    return current if slots == current.slots else Placement(current.version + 1, num_experts, num_ranks, slots)


def _check(
    counts: Sequence[Sequence[int]], num_experts: int, num_slots: int, num_ranks: int, num_groups: int, num_nodes: int
) -> None:
    if num_experts < 1 or any(len(row) != num_experts for row in counts):
        raise ValueError("need as many counts in each layer, at least one")
    if any(min(row) < 0 for row in counts):
        raise ValueError("a count is negative")
    check_slots(num_slots, num_experts, num_ranks)
    if num_groups < 1 or num_experts % num_groups:
        raise ValueError(f"{num_groups} groups do not divide {num_experts} experts")
    if num_nodes < 1 or num_ranks % num_nodes:
        raise ValueError(f"{num_nodes} nodes do not divide {num_ranks} ranks")


def _layer(counts: Sequence[int], num_slots: int, num_ranks: int, num_groups: int, num_nodes: int) -> _Packs:
    size = len(counts) // num_groups
    groups = [range(first, first + size) for first in range(0, len(counts), size)]
    tokens = _float32(sum(counts[group.start : group.stop]) for group in groups)
    ranks: _Packs = []
    for node in _packed(tokens, num_nodes):
        experts = [expert for group in node for expert in groups[group]]
        weights = _float32(counts[expert] for expert in experts)
        chosen, loads = _replicated(weights, num_slots // num_nodes)
        ranks += [[experts[chosen[item]] for item in pack] for pack in _packed(loads, num_ranks // num_nodes)]
    return ranks


def _replicated(weights: Sequence[float], num_slots: int) -> tuple[list[int], list[float]]:
    """Which expert each replica is of, and its load."""
    chosen = list(range(len(weights)))
    counts = [1] * len(weights)
    each = array("f", weights)
    fullest = [(-weight, expert) for expert, weight in enumerate(weights)]
    heapify(fullest)
    for _ in range(num_slots - len(weights)):
        expert = fullest[0][1]
        chosen.append(expert)
        counts[expert] += 1
        each[expert] = weights[expert] / counts[expert]
        heapreplace(fullest, (-each[expert], expert))
    return chosen, list(map(each.tolist().__getitem__, chosen))


def _packed(loads: Sequence[float], num_packs: int) -> _Packs:
    """Items of each pack, as many in each; of packs with equal loads the first is filled first."""
    size = len(loads) // num_packs
    if size == 1:
        return [[item] for item in range(num_packs)]
    packs: _Packs = [[] for _ in range(num_packs)]
    sums = array("f", [0.0]) * num_packs
    emptiest = [(0.0, pack) for pack in range(num_packs)]
    for item in sorted(range(len(loads)), key=loads.__getitem__, reverse=True):
        pack = emptiest[0][1]
        packs[pack].append(item)
        if len(packs[pack]) == size:
            heappop(emptiest)
        else:
            sums[pack] += loads[item]
            heapreplace(emptiest, (sums[pack], pack))
    return packs


def _float32(values: Iterable[int]) -> list[float]:
    return array("f", values).tolist()


# -- as near as possible to what there is ----------------------------------------------------------------------------


def _settled(current: Placement, layer: int, ranks: _Packs, num_nodes: int) -> tuple[int, ...]:
    """The slots of a layer, once ranks, and nodes before them, are named after those most like them."""
    size = len(ranks) // num_nodes
    before = [current.experts_of(layer, rank) for rank in range(len(ranks))]
    nodes = [ranks[first : first + size] for first in range(0, len(ranks), size)]
    old_nodes = [before[first : first + size] for first in range(0, len(ranks), size)]
    slots: list[int] = []
    for node, there in zip(_matched(list(map(_flat, nodes)), list(map(_flat, old_nodes))), old_nodes, strict=True):
        for rank, held in zip(_matched(nodes[node], there), there, strict=True):
            slots += _in_their_slots(nodes[node][rank], held)
    return tuple(slots)


def _matched(packs: Sequence[Sequence[int]], places: Sequence[Sequence[int]]) -> list[int]:
    """For each place a pack: pairs that share most experts first; never worse than each in its own place."""
    if len(packs) == 1:
        return [0]
    where: dict[object, list[int]] = {}
    for place, experts in enumerate(places):
        for item in _told_apart(experts):
            where.setdefault(item, []).append(place)
    shared: dict[tuple[int, int], int] = {}
    for pack, experts in enumerate(packs):
        for item in _told_apart(experts):
            for place in where.get(item, ()):
                shared[pack, place] = shared.get((pack, place), 0) + 1
    place_of: dict[int, int] = {}
    taken: set[int] = set()
    for pack, place in sorted(shared, key=shared.__getitem__, reverse=True):
        if pack not in place_of and place not in taken:
            place_of[pack] = place
            taken.add(place)
    rest = (place for place in range(len(places)) if place not in taken)
    for pack in range(len(packs)):
        if pack not in place_of:
            place_of[pack] = next(rest)
    if sum(shared.get(pair, 0) for pair in place_of.items()) <= sum(shared.get((n, n), 0) for n in range(len(packs))):
        return list(range(len(packs)))
    return sorted(place_of, key=place_of.__getitem__)


def _told_apart(experts: Sequence[int]) -> Sequence[object]:
    """One item a slot: the second replica of an expert is another one than the first."""
    if len(set(experts)) == len(experts):
        return experts
    seen: dict[int, int] = {}
    items = []
    for expert in experts:
        seen[expert] = seen.get(expert, 0) + 1
        items.append((expert, seen[expert]) if seen[expert] > 1 else expert)
    return items


def _in_their_slots(experts: Sequence[int], held: Sequence[int]) -> list[int]:
    """The experts of a rank, those that it holds already in the slots where they are."""
    new = list(experts)
    slots = [-1] * len(held)
    for slot, expert in enumerate(held):
        if expert in new:
            new.remove(expert)
            slots[slot] = expert
    rest = iter(new)
    return [next(rest) if expert < 0 else expert for expert in slots]


def _flat(packs: Iterable[Sequence[int]]) -> tuple[int, ...]:
    return tuple(expert for pack in packs for expert in pack)
