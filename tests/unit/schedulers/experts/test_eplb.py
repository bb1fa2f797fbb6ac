from __future__ import annotations

import json
from hashlib import sha256
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedulers.experts.eplb import eplb
from schedulers.experts.placement import Placement
from tests.support.source_tree import ROOT
from tests.unit.schedulers.experts.cases import Case, case

EXAMPLE = [
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
]
ORIGINAL = json.loads((ROOT / "tests/data/eplb_original.json").read_text())
"""Digests of what github.com/deepseek-ai/EPLB (commit d52c72d) gives for ``case(seed)``, by seed.

Made with torch 2.13, and ``stable=True`` in the one sort: a sort without it leaves open which of two equal loads is
packed first, and torch answers that in another way on processors with AVX-512.
"""


def balanced(of: Case, current: Placement | None = None) -> Placement:
    return eplb(
        of.counts, of.num_slots, of.num_ranks, num_groups=of.num_groups, num_nodes=of.num_nodes, current=current
    )


def digest(slots: tuple[tuple[int, ...], ...]) -> str:
    return sha256(json.dumps(slots).encode()).hexdigest()[:16]


def test_gives_the_example_of_the_original() -> None:
    assert eplb(EXAMPLE, 16, 8, num_groups=4, num_nodes=2).slots == (
        (5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1),
        (7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1),
    )


def test_hierarchical_and_global_balance_the_example_as_published() -> None:
    def ratios(placement: Placement) -> list[float]:
        loads = [placement.rank_loads(layer, row) for layer, row in enumerate(EXAMPLE)]
        return [max(row) / (sum(row) / 8) for row in loads]

    assert ratios(eplb(EXAMPLE, 16, 8, num_groups=4, num_nodes=2)) == pytest.approx([1.208, 1.2425], abs=1e-3)
    assert ratios(eplb(EXAMPLE, 16, 8)) == pytest.approx([1.073, 1.19], abs=1e-3)


def test_equals_the_original_on_random_matrices() -> None:
    assert len(ORIGINAL) == 200
    differing = [seed for seed, expected in ORIGINAL.items() if digest(balanced(case(int(seed))).slots) != expected]
    assert not differing


# -- a twin, by scans and in NumPy's float32 -------------------------------------------------------------------------


def twin(of: Case) -> list[list[int]]:
    groups, nodes = (of.num_groups, of.num_nodes) if of.num_groups % of.num_nodes == 0 else (1, 1)
    return [_twin_of_layer(np.float32(row), of.num_slots, of.num_ranks, groups, nodes) for row in of.counts]


def _twin_of_layer(weights: np.ndarray, num_slots: int, num_ranks: int, groups: int, nodes: int) -> list[int]:
    slots: list[int] = []
    by_group = np.arange(len(weights)).reshape(groups, -1)
    for node in _twin_packs([np.float32(weights[group].sum(dtype=np.float64)) for group in by_group], nodes):
        experts = by_group[node].ravel()
        chosen, count = list(range(len(experts))), np.ones(len(experts), np.float32)
        while len(chosen) < num_slots // nodes:
            chosen.append(int((weights[experts] / count).argmax()))
            count[chosen[-1]] += 1
        each = (weights[experts] / count)[chosen]
        slots += [int(experts[chosen[item]]) for item in chain(*_twin_packs(list(each), num_ranks // nodes))]
    return slots


def _twin_packs(loads: list[np.float32], num_packs: int) -> list[list[int]]:
    size = len(loads) // num_packs
    packs: list[list[int]] = [[] for _ in range(num_packs)]
    sums = np.zeros(num_packs, np.float32)
    for item in sorted(range(len(loads)), key=lambda item: (-loads[item], item)) if size > 1 else range(len(loads)):
        pack = min((pack for pack in range(num_packs) if len(packs[pack]) < size), key=lambda pack: sums[pack])
        packs[pack if size > 1 else item].append(item)
        sums[pack] += loads[item]
    return packs


@st.composite
def cases(draw: st.DrawFn) -> Case:
    nodes, groups = draw(st.sampled_from((1, 2, 3))), draw(st.sampled_from((1, 2, 4, 6)))
    num_ranks = nodes * draw(st.integers(1, 4))
    num_experts = groups * nodes * draw(st.integers(1, 5))
    num_slots = -(-num_experts // num_ranks) * num_ranks + num_ranks * draw(st.integers(0, 2))
    row = st.lists(st.integers(0, draw(st.sampled_from((3, 100, 1 << 22)))), min_size=num_experts, max_size=num_experts)
    return Case(draw(st.lists(row, min_size=1, max_size=3)), num_slots, num_ranks, groups, nodes)


@given(cases())
def test_equals_the_twin(of: Case) -> None:
    assert balanced(of).slots == tuple(map(tuple, twin(of)))


@given(cases())
def test_hierarchical_keeps_groups_on_one_node(of: Case) -> None:
    if of.num_groups % of.num_nodes:
        return
    size = of.num_slots // of.num_nodes
    for layer in balanced(of).slots:
        nodes = [set(layer[first : first + size]) for first in range(0, of.num_slots, size)]
        assert sum(map(len, nodes)) == len(set(layer))  # no expert on two nodes
        for group in range(0, len(of.counts[0]), len(of.counts[0]) // of.num_groups):
            assert sum(group in node for node in nodes) == 1


# -- with a placement there is ---------------------------------------------------------------------------------------


@st.composite
def successive(draw: st.DrawFn) -> tuple[Case, Case]:
    one = draw(cases())
    change = st.integers(0, 50)
    counts = [[max(0, count + draw(change)) for count in row] for row in one.counts]
    return one, one._replace(counts=counts)


@given(successive())
@settings(max_examples=50)
def test_keeps_what_stays_where_it_is_and_no_rank_gets_another_load(pair: tuple[Case, Case]) -> None:
    one, other = pair
    current, alone = balanced(one), balanced(other)
    placement = balanced(other, current)
    for layer, counts in enumerate(other.counts):
        mine = sorted(sorted(placement.experts_of(layer, rank)) for rank in range(other.num_ranks))
        assert mine == sorted(sorted(alone.experts_of(layer, rank)) for rank in range(other.num_ranks))
        loads = [sorted(one.rank_loads(layer, counts)) for one in (placement, alone)]
        assert loads[0] == pytest.approx(loads[1])
        for rank in range(other.num_ranks):
            held, holds = current.experts_of(layer, rank), placement.experts_of(layer, rank)
            stay = sum(min(held.count(expert), holds.count(expert)) for expert in set(held))
            assert sum(before == after for before, after in zip(held, holds, strict=True)) == stay
    assert len(current.moves_to(placement)) <= len(current.moves_to(alone))


@given(cases())
def test_the_same_counts_give_the_same_placement(of: Case) -> None:
    current = balanced(of)
    assert balanced(of, current) is current


def test_versions_go_up() -> None:
    current = eplb(EXAMPLE, 16, 8)
    assert eplb(EXAMPLE[::-1], 16, 8, current=current).version == current.version + 1 == 2


@pytest.mark.parametrize(
    ("counts", "num_slots", "num_ranks", "options", "message"),
    [
        ([], 4, 2, {}, "as many counts"),
        ([[1, 2], [1]], 4, 2, {}, "as many counts"),
        ([[1, -2]], 4, 2, {}, "negative"),
        ([[1, 2]], 1, 1, {}, "1 slots cannot hold 2 experts"),
        ([[1, 2]], 5, 2, {}, "2 ranks do not divide 5 slots"),
        ([[1, 2]], 4, 2, {"num_groups": 3}, "3 groups"),
        ([[1, 2]], 4, 2, {"num_nodes": 4}, "4 nodes"),
        ([[1, 2, 3]], 4, 2, {"current": eplb([[1, 2]], 4, 2)}, "other numbers"),
    ],
)
def test_says_what_does_not_fit(
    counts: list[list[int]], num_slots: int, num_ranks: int, options: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        eplb(counts, num_slots, num_ranks, **options)
