"""Experts over gloo ranks: whatever the placement, the same as one process with all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from models.parallel.rank_pool import RankPool
from schedulers.experts.placement import Placement, in_order
from tests.support import expert_ranks as ranks
from tests.support.expert_jobs import FACTS, on_ranks

_TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def two() -> Iterator[RankPool]:
    with RankPool(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def four() -> Iterator[RankPool]:
    with RankPool(4) as pool:
        yield pool


@pytest.mark.parametrize("num_rows", [1, 2, 5])
@pytest.mark.parametrize(("num_slots", "choice"), [(8, "every"), (12, "every"), (12, "last")])
def test_two_ranks_give_what_one_process_does(two: RankPool, num_slots: int, choice: str, num_rows: int) -> None:
    """Uneven rows, or none on a rank; replicas, and either of them."""
    assert max(two.run(ranks.error, ranks.placement(num_rows, num_slots), num_rows, choice)) <= _TOLERANCE


@pytest.mark.parametrize("num_rows", [1, 3, 9])
@pytest.mark.parametrize("num_slots", [8, 12])
def test_four_ranks_give_what_one_process_does(four: RankPool, num_slots: int, num_rows: int) -> None:
    assert max(four.run(ranks.error, ranks.placement(num_rows, num_slots), num_rows)) <= _TOLERANCE


def test_other_placements_change_nothing_and_each_rank_holds_its_slots_alone(four: RankPool) -> None:
    placements = [ranks.placement(seed, 12) for seed in range(4)]
    for errors, sent, held in four.run(ranks.after_moving, placements):
        assert max(errors) <= _TOLERANCE
        assert sent > 0
        assert held == ranks.LAYERS * 12 // 4 * ranks.EXPERT_BYTES


@pytest.mark.parametrize(
    ("after", "num_sent"), [([3, 2, 1, 0, 4, 5, 6, 7], (0, 0)), ([0, 1, 2, 4, 3, 5, 6, 7], (1, 1))]
)
def test_no_more_travels_than_a_rank_lacks(two: RankPool, after: list[int], num_sent: tuple[int, int]) -> None:
    """Experts that change places on their rank stay there."""
    placements = [[[*range(8)]] * ranks.LAYERS, [after] * ranks.LAYERS]
    sent = [sent for _, sent, _ in two.run(ranks.after_moving, placements)]
    assert sent == [one * ranks.LAYERS * ranks.EXPERT_BYTES for one in num_sent]


def test_steps_go_on_beside_a_fetch(two: RankPool) -> None:
    placements = [ranks.placement(seed, 12) for seed in range(6)]
    assert max(two.run(ranks.while_fetching, placements, 10)) <= _TOLERANCE


_ROW = [0, 1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("after", "moves", "message"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 6], [(0, 6, 6, 7)], "layer 0 has not each of its 8 experts"),
        ([1, 0, 2, 3, 4, 5, 6, 7], [(0, 1, 0, 0), (0, 0, 1, 1)], "slot 0 of layer 0 has expert 0, not 1, to give"),
        ([1, 0, 2, 3, 4, 5, 6, 7], [(0, 1, 1, 0)], "the moves do not lead to the placement"),
    ],
)
def test_placement_that_cannot_be_held_changes_nothing(
    two: RankPool, after: list[int], moves: list[tuple[int, int, int, int]], message: str
) -> None:
    for words, error in two.run(ranks.refused, [_ROW, _ROW], [after, _ROW], moves):
        assert message in words
        assert error <= _TOLERANCE


@pytest.mark.parametrize(("num_rows", "top_k"), [(1, None), (2, 1), (5, None)])
def test_whole_network_on_ranks_equals_one_process(two: RankPool, num_rows: int, top_k: int | None) -> None:
    for error, is_alike in two.run(ranks.network_error, 1, num_rows, top_k):
        assert error <= _TOLERANCE
        assert is_alike


def test_whole_network_on_four_ranks_equals_one_process(four: RankPool) -> None:
    for error, is_alike in four.run(ranks.network_error, 2, 3, None):
        assert error <= _TOLERANCE
        assert is_alike


def test_pictures_are_those_of_one_process_with_a_placement_that_changes_half_way(two: RankPool) -> None:
    old = in_order(FACTS.layers, FACTS.experts, 2, FACTS.experts + 2)
    new = Placement(2, FACTS.experts, 2, tuple(layer[::-1] for layer in old.slots))
    moves = [(move.layer, move.expert, move.source, move.slot) for move in old.moves_to(new)]
    for error, is_alike in two.run(on_ranks, old.slots, new.slots, moves):
        assert error <= 1e-5  # through six steps
        assert is_alike
