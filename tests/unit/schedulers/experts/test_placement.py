from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedulers.experts.placement import Move, Placement, in_order


@st.composite
def layouts(draw: st.DrawFn) -> tuple[int, int, st.SearchStrategy[list[int]]]:
    """Experts, ranks, and layers of slots for them."""
    num_experts, num_ranks = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    num_slots = -(-num_experts // num_ranks) * num_ranks + num_ranks * draw(st.integers(0, 2))
    more = draw(st.lists(st.integers(0, num_experts - 1), min_size=num_slots, max_size=num_slots))
    return num_experts, num_ranks, st.permutations([*range(num_experts), *more][:num_slots])


@st.composite
def placements(draw: st.DrawFn) -> tuple[Placement, Placement]:
    num_experts, num_ranks, layer = draw(layouts())
    layers = st.lists(layer.map(tuple), min_size=2, max_size=2).map(tuple)
    return Placement(1, num_experts, num_ranks, draw(layers)), Placement(2, num_experts, num_ranks, draw(layers))


def test_begins_with_experts_in_order() -> None:
    placement = in_order(num_layers=2, num_experts=3, num_ranks=2, num_slots=4)
    assert placement.slots == ((0, 1, 2, 0), (0, 1, 2, 0))
    assert placement.replicas[1] == ((0, 3), (1,), (2,))
    assert (placement.version, placement.num_layers, placement.num_slots, placement.slots_per_rank) == (1, 2, 4, 2)
    assert [placement.rank_of(slot) for slot in range(4)] == [0, 0, 1, 1]
    assert placement.experts_of(0, 1) == (2, 0)
    assert placement.rank_loads(0, [10, 1, 3]) == [6.0, 8.0]


@given(placements(), st.data())
def test_ranks_together_work_on_every_token(pair: tuple[Placement, Placement], data: st.DataObject) -> None:
    placement = pair[0]
    size = placement.num_experts
    counts = data.draw(st.lists(st.integers(0, 1000), min_size=size, max_size=size))
    assert sum(placement.rank_loads(0, counts)) == pytest.approx(sum(counts))


@given(placements(), st.sampled_from((1, 2)))
def test_moves_turn_one_placement_into_the_other(pair: tuple[Placement, Placement], num_nodes: int) -> None:
    old, new = pair
    if old.num_ranks % num_nodes:
        return
    slots = [list(layer) for layer in old.slots]
    moves = old.moves_to(new, num_nodes)
    for move in moves:
        assert old.slots[move.layer][move.source] == move.expert
        slots[move.layer][move.slot] = move.expert
        rank = old.rank_of(move.slot)
        is_here = move.expert in old.experts_of(move.layer, rank)
        assert (old.rank_of(move.source) == rank) == is_here
    assert tuple(map(tuple, slots)) == new.slots
    assert len({(move.layer, move.slot) for move in moves}) == len(moves)
    assert not old.moves_to(old)


def test_copies_come_from_the_own_node_and_from_who_sends_least() -> None:
    old = Placement(1, 2, 4, ((0, 1, 0, 1, 0, 1, 0, 1),))
    assert old.moves_to(Placement(2, 2, 4, ((1, 0, 0, 1, 0, 1, 0, 1),))) == [Move(0, 1, 1, 0), Move(0, 0, 0, 1)]
    apart = Placement(1, 3, 4, ((0, 0, 1, 1, 2, 2, 1, 1),))
    asked = Placement(2, 3, 4, ((1, 1, 1, 1, 1, 2, 1, 0),))
    sources = [(move.slot, move.source) for move in apart.moves_to(asked, num_nodes=2)]
    assert sources == [(0, 2), (1, 2), (4, 6), (7, 0)]


@pytest.mark.parametrize(
    ("num_experts", "num_ranks", "slots", "message"),
    [
        (2, 2, (), "at least 1"),
        (2, 2, ((0, 1), (0,)), "layer 1 has 1 slots"),
        (2, 2, ((0, 0),), "does not hold each"),
        (2, 2, ((0, 2),), "does not hold each"),
        (2, 2, ((0, 1, 1),), "2 ranks do not divide 3 slots"),
        (3, 2, ((0, 1),), "2 slots cannot hold 3 experts"),
    ],
)
def test_says_what_does_not_fit(
    num_experts: int, num_ranks: int, slots: tuple[tuple[int, ...], ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Placement(1, num_experts, num_ranks, slots)


def test_moves_are_between_placements_of_one_shape() -> None:
    with pytest.raises(ValueError, match="placements of layers"):
        in_order(1, 2, 1).moves_to(in_order(2, 2, 1))
    with pytest.raises(ValueError, match="3 nodes"):
        in_order(1, 2, 2).moves_to(in_order(1, 2, 2), num_nodes=3)
    with pytest.raises(ValueError, match="3 counts for 2 experts"):
        in_order(1, 2, 1).rank_loads(0, [1, 2, 3])
