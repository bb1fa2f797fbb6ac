"""Matrices of tokens per layer and expert, by seed, of every kind that balancing has to do with."""

from __future__ import annotations

from random import Random
from typing import NamedTuple


class Case(NamedTuple):
    counts: list[list[int]]
    num_slots: int
    num_ranks: int
    num_groups: int
    num_nodes: int


_SHAPES = (
    # experts, slots, ranks, groups, nodes
    (12, 16, 8, 4, 2),
    (16, 16, 4, 1, 1),
    (16, 24, 8, 4, 4),
    (32, 40, 8, 8, 2),
    (64, 72, 8, 8, 4),
    (64, 80, 16, 1, 1),
    (128, 160, 8, 1, 1),
    (128, 144, 16, 8, 2),
    (256, 288, 32, 8, 4),
    (256, 320, 64, 1, 1),
    (8, 12, 4, 3, 2),  # groups do not divide the experts: one group
    (60, 64, 16, 4, 3),  # nodes do not divide the ranks: one node
)
KINDS = ("uniform", "zipf", "small", "gaps", "large")


def case(seed: int) -> Case:
    rng = Random(seed)
    num_experts, num_slots, num_ranks, num_groups, num_nodes = rng.choice(_SHAPES)
    kind = rng.choice(KINDS)
    counts = [_row(rng, kind, num_experts) for _ in range(rng.randint(1, 4))]
    num_groups = 1 if num_experts % num_groups else num_groups
    return Case(counts, num_slots, num_ranks, num_groups, 1 if num_ranks % num_nodes else num_nodes)


def _row(rng: Random, kind: str, num_experts: int) -> list[int]:
    if kind == "zipf":
        counts = [100_000 // rank for rank in range(1, num_experts + 1)]
        rng.shuffle(counts)
        return counts
    if kind == "gaps":
        return [rng.choice((0, 0, rng.randint(1, 50))) for _ in range(num_experts)]
    largest = {"uniform": 1000, "small": 6, "large": 1 << 30}[kind]
    return [rng.randint(0, largest) for _ in range(num_experts)]
