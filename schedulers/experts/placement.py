"""Which expert each slot of each rank holds, and what has to be copied to get from one placement to the next.

A rank has the same number of slots in every layer, and each slot holds the weights of one expert. The slots of an
expert that has several are its *replicas*, and share its tokens. Slots are numbered along the ranks: rank r has those
from ``r * slots_per_rank`` on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple


class Move(NamedTuple):
    """The weights of ``expert`` go from slot ``source`` of the old placement to ``slot`` of the new one."""

    layer: int
    expert: int
    source: int
    slot: int


@dataclass(frozen=True)
class Placement:
    """``slots[layer][slot]`` is an expert. Two placements of one model never have the same ``version``.

    Raises:
        ValueError: a layer does not give every rank as many slots, or leaves an expert out.
    """

    version: int
    num_experts: int
    num_ranks: int
    slots: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if self.version < 1 or self.num_experts < 1 or self.num_ranks < 1 or not self.slots:
            raise ValueError("a placement has a version, experts, ranks and layers: each at least 1")
        num_slots, every = len(self.slots[0]), set(range(self.num_experts))
        check_slots(num_slots, self.num_experts, self.num_ranks)
        for layer, experts in enumerate(self.slots):
            if len(experts) != num_slots:
                raise ValueError(f"layer {layer} has {len(experts)} slots, layer 0 has {num_slots}")
            if set(experts) != every:
                raise ValueError(f"layer {layer} does not hold each of the experts 0 to {self.num_experts - 1}")

    @property
    def num_layers(self) -> int:
        """Layers that have experts."""
        return len(self.slots)

    @property
    def num_slots(self) -> int:
        """Of one layer, on all ranks."""
        return len(self.slots[0])

    @property
    def slots_per_rank(self) -> int:
        """Of one layer."""
        return self.num_slots // self.num_ranks

    @cached_property
    def replicas(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """``replicas[layer][expert]``: the slots that hold it, in ascending order."""
        return tuple(map(self._replicas_of_layer, self.slots))

    def _replicas_of_layer(self, experts: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        found: list[list[int]] = [[] for _ in range(self.num_experts)]
        for slot, expert in enumerate(experts):
            found[expert].append(slot)
        return tuple(map(tuple, found))

    def rank_of(self, slot: int) -> int:
        """The rank that has this slot."""
        return slot // self.slots_per_rank

    def experts_of(self, layer: int, rank: int) -> tuple[int, ...]:
        """What a rank holds, slot by slot."""
        return self.slots[layer][rank * self.slots_per_rank : (rank + 1) * self.slots_per_rank]

    def rank_loads(self, layer: int, counts: Sequence[int]) -> list[float]:
        """Tokens that each rank works on in a layer, if ``counts[expert]`` are shared evenly among its replicas.

        Raises:
            ValueError: there are not as many counts as experts.
        """
        if len(counts) != self.num_experts:
            raise ValueError(f"{len(counts)} counts for {self.num_experts} experts")
        each = [count / len(slots) for count, slots in zip(counts, self.replicas[layer], strict=True)]
        loads = list(map(each.__getitem__, self.slots[layer]))
        size = self.slots_per_rank
        return [sum(loads[first : first + size]) for first in range(0, self.num_slots, size)]

    def moves_to(self, new: Placement, num_nodes: int = 1) -> list[Move]:
        """What to copy: from a slot of the same rank if it has one, else of its node, else from who has sent least.

        Raises:
            ValueError: the other placement is of another shape, or nodes do not divide the ranks.
        """
        check_same_shape(self, new)
        if num_nodes < 1 or self.num_ranks % num_nodes:
            raise ValueError(f"{num_nodes} nodes do not divide {self.num_ranks} ranks")
        size, node_size = self.slots_per_rank, self.num_slots // num_nodes
        sent = [0] * self.num_ranks
        moves = []
        for layer, (before, after) in enumerate(zip(self.slots, new.slots, strict=True)):
            if before == after:
                continue
            for slot, expert in enumerate(after):
                if before[slot] == expert:
                    continue

                def distance(source: int, slot: int = slot) -> tuple[bool, bool, int]:
                    is_elsewhere = source // size != slot // size
                    return is_elsewhere, source // node_size != slot // node_size, sent[source // size]

                source = min(self.replicas[layer][expert], key=distance)
                sent[source // size] += source // size != slot // size
                moves.append(Move(layer, expert, source, slot))
        return moves


def in_order(num_layers: int, num_experts: int, num_ranks: int, num_slots: int | None = None) -> Placement:
    """The placement to begin with: experts in order, then as many again as there are slots left, from the first on.

    Raises:
        ValueError: there are fewer slots than experts, or ranks do not divide them.
    """
    num_slots = num_experts if num_slots is None else num_slots
    experts = tuple(slot % max(1, num_experts) for slot in range(num_slots))
    return Placement(1, num_experts, num_ranks, (experts,) * num_layers)


def check_slots(num_slots: int, num_experts: int, num_ranks: int) -> None:
    """Raises: ValueError: there are fewer slots than experts, or ranks do not divide them."""
    if num_slots < num_experts:
        raise ValueError(f"{num_slots} slots cannot hold {num_experts} experts")
    if num_ranks < 1 or num_slots % num_ranks:
        raise ValueError(f"{num_ranks} ranks do not divide {num_slots} slots")


def check_same_shape(one: Placement, other: Placement) -> None:
    """Raises: ValueError: they differ in layers, experts, ranks or slots."""
    shapes = [(p.num_layers, p.num_experts, p.num_ranks, p.num_slots) for p in (one, other)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"placements of layers, experts, ranks and slots {shapes[0]} and {shapes[1]}")
