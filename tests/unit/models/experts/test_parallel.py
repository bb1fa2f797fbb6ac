"""Experts over ranks, on one: replicas and placements change nothing. Several ranks are in tests/integration."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from models.methods.experts.parallel import ExpertRanks, every_replica
from models.parallel.degrees import ParallelDegrees
from models.parallel.groups import Group
from models.parallel.rows import all_shares, row_counts, share_of
from schedulers.experts.activation import choose
from tests.support import expert_ranks as support


def _error(ranks: ExpertRanks, layers: list[support.Layer]) -> float:
    routed = support.routed(3, 7, seed=5)
    with torch.inference_mode():
        return support.worst(support.spread(ranks, *routed), support.alone(layers, *routed))


def test_replicas_share_the_tokens_and_a_switch_moves_them() -> None:
    layers = [support.Layer(seed) for seed in range(support.LAYERS)]
    old, new = support.placement(1, 12), support.placement(2, 12)
    ranks = ExpertRanks(layers, old, Group(), Group())
    assert _error(ranks, layers) <= 1e-6
    ranks.fetch(new, support.moves(old, new))
    assert _error(ranks, layers) <= 1e-6
    ranks.switch()
    assert [*ranks.layers[0].slots] == new[0]
    assert torch.equal(ranks.layers[1].down[3], layers[1].down[new[1][3]])
    assert _error(ranks, layers) <= 1e-6
    with pytest.raises(RuntimeError, match="no placement was fetched"):
        ranks.switch()


def test_schedulers_choose_which_replicas_share_the_tokens() -> None:
    layers = [support.Layer(seed) for seed in range(support.LAYERS)]
    for tokens_per_read in (1.0, 1e9):
        by_number = partial(choose, tokens_per_read=tokens_per_read)
        assert _error(ExpertRanks(layers, support.placement(3, 12), Group(), Group(), by_number), layers) <= 1e-6


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ([[*range(8)]], "1 layers were placed; there are 2"),
        ([[*range(8)], [0, *range(8)]], "layer 1 has 9 slots, which 1 ranks cannot share"),
        ([[*range(8)], [0, *range(7)]], "layer 1 has not each of its 8 experts"),
    ],
)
def test_placement_that_cannot_be_held_is_refused(slots: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExpertRanks([support.Layer(0), support.Layer(1)], slots, Group(), Group())


def test_usual_choice_is_every_replica() -> None:
    assert every_replica([1, 0, 2, 1], [5, 0, 1], 2) == [[1], [0, 3], [2]]


def test_rows_are_dealt_out_as_evenly_as_they_can_be() -> None:
    assert row_counts(5, 4) == [2, 1, 1, 1]
    assert row_counts(1, 2) == [1, 0]
    rows = torch.randn(3, 2)
    assert torch.equal(all_shares(share_of(rows, Group()), 3, Group()), rows)


def test_ranks_that_share_experts_are_the_slowest_axis_of_an_instance() -> None:
    degrees = ParallelDegrees(expert=2, ulysses=2)
    assert [degrees.members("expert", rank) for rank in range(4)] == [(0, 2), (1, 3), (0, 2), (1, 3)]
    with pytest.raises(ValueError, match=r"cfg \(1\) \* expert \(3\) = 3 ranks do not divide a world of 4"):
        ParallelDegrees(expert=3).num_instances(4)
