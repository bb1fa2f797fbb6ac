"""Sequence parallelism over gloo: N ranks equal one rank."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from models.parallel.degrees import ParallelDegrees
from models.parallel.rank_pool import RankFailed, RankPool
from tests.support import sequence_ranks as ranks

_TOLERANCE = 2e-6  # float32, values near 1: one order of summation against another

_MODEL_TOLERANCE = 2e-5  # the same through three layers


@pytest.fixture(scope="module")
def two() -> Iterator[RankPool]:
    with RankPool(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def four() -> Iterator[RankPool]:
    with RankPool(4) as pool:
        yield pool


_TWO = [ParallelDegrees(ulysses=2), ParallelDegrees(ring=2)]
_FOUR = [ParallelDegrees(ulysses=4), ParallelDegrees(ring=4), ParallelDegrees(ulysses=2, ring=2)]


def _name(value: object) -> str:
    return f"u{value.ulysses}r{value.ring}c{value.cfg}" if isinstance(value, ParallelDegrees) else str(value)


@pytest.mark.parametrize("num_tokens", [24, 37, 2])
@pytest.mark.parametrize("degrees", _TWO, ids=_name)
def test_dense_on_two_ranks_equals_one(two: RankPool, degrees: ParallelDegrees, num_tokens: int) -> None:
    assert max(two.run(ranks.dense_error, degrees, num_tokens)) <= _TOLERANCE


@pytest.mark.parametrize("num_tokens", [24, 37, 5])
@pytest.mark.parametrize("degrees", _FOUR, ids=_name)
def test_dense_on_four_ranks_equals_one(four: RankPool, degrees: ParallelDegrees, num_tokens: int) -> None:
    assert max(four.run(ranks.dense_error, degrees, num_tokens)) <= _TOLERANCE


@pytest.mark.parametrize("references", [[], [0], [1, 5]])
def test_tile_masks_round_a_ring_of_four_equal_the_mask_as_a_whole(four: RankPool, references: list[int]) -> None:
    """Seven frames of five tokens: runs end inside frames, and some blocks hold nothing that a query may see."""
    assert max(four.run(ranks.tile_ring_error, references, 7, 5)) <= _TOLERANCE


@pytest.mark.parametrize("degrees", _TWO, ids=_name)
def test_two_instances_of_two_ranks_do_not_hear_each_other(four: RankPool, degrees: ParallelDegrees) -> None:
    assert max(four.run(ranks.dense_error, degrees, 11)) <= _TOLERANCE


def test_every_rank_has_equally_many_heads_of_all_tokens(four: RankPool) -> None:
    assert four.run(ranks.seen_by_inner, ParallelDegrees(ulysses=4), 37) == [[(2, 37, 1, 8)]] * 4


def test_bytes_are_those_of_the_equation(four: RankPool) -> None:
    """All-to-all: q, k, v and the output, (P - 1) / P of a shard. Ring: R - 1 times a block of keys and of values."""
    whole = 2 * 24 * 4 * 8 * 4
    assert four.run(ranks.traffic, ParallelDegrees(ulysses=4), 24) == [{"all_to_all": 4 * whole // 4 * 3 // 4}] * 4
    assert four.run(ranks.traffic, ParallelDegrees(ring=4), 24) == [{"ring": 3 * 2 * whole // 4}] * 4
    both = {"all_to_all": 4 * whole // 4 // 2, "ring": 2 * whole // 4}
    assert four.run(ranks.traffic, ParallelDegrees(ulysses=2, ring=2), 24) == [both] * 4


@pytest.mark.parametrize("lengths", [[3, 0], [1, 4], [2, 2], [0, 0]])
def test_gather_takes_any_lengths(two: RankPool, lengths: list[int]) -> None:
    wanted = [0.0] * lengths[0] + [1.0] * lengths[1]
    assert two.run(ranks.uneven_gather, lengths) == [wanted, wanted]


def test_heads_that_the_ulysses_degree_does_not_divide_are_refused_on_every_rank(four: RankPool) -> None:
    for message in four.run(ranks.refusal, ParallelDegrees(ulysses=4), 24, 6):
        assert "6 heads, which the ulysses degree 4 does not divide" in message
    assert four.run(ranks.refusal, ParallelDegrees(ulysses=2, ring=2), 24, 6) == [""] * 4


_ODD_GRID = (3, 3, 5)  # 45 tokens: neither 2 nor 4 divides them, and runs end inside frames


@pytest.mark.parametrize("degrees", [*_TWO, ParallelDegrees(cfg=2)], ids=_name)
def test_whole_model_on_two_ranks_equals_its_forward(two: RankPool, degrees: ParallelDegrees) -> None:
    assert max(error for error, _ in two.run(ranks.model_error, degrees, _ODD_GRID)) <= _MODEL_TOLERANCE


@pytest.mark.parametrize("degrees", [*_FOUR, ParallelDegrees(ulysses=2, cfg=2)], ids=_name)
def test_whole_model_on_four_ranks_equals_its_forward(four: RankPool, degrees: ParallelDegrees) -> None:
    assert max(error for error, _ in four.run(ranks.model_error, degrees, _ODD_GRID)) <= _MODEL_TOLERANCE


def test_rows_of_three_requests_come_back_in_order(two: RankPool) -> None:
    assert two.run(ranks.rows_there_and_back, 6) == [([0, 2, 4], [*range(6)]), ([1, 3, 5], [*range(6)])]


def test_guidance_on_two_ranks_runs_one_branch_of_every_request_on_each(four: RankPool) -> None:
    for _, shape in four.run(ranks.model_error, ParallelDegrees(ulysses=2, cfg=2), _ODD_GRID):
        assert shape == (1, 45, 2, 12)


@pytest.mark.parametrize("degrees", _FOUR, ids=_name)
def test_tile_masks_on_four_ranks_equal_one(four: RankPool, degrees: ParallelDegrees) -> None:
    """Another mask in each layer, one of them none; 105 tokens in frames of 15."""
    assert max(four.run(ranks.tile_model_error, degrees, (7, 3, 5), [2, None, 3])) <= _MODEL_TOLERANCE


def test_tile_masks_leave_the_same_work_to_every_rank_that_has_whole_heads(four: RankPool) -> None:
    """2 reference frames of 8: 34 of 64 pairs of frames are kept, for a batch of 2 and 4 heads."""
    pairs = 2 * 4 * 34 * (3 * 5) ** 2
    assert four.run(ranks.tile_pairs, ParallelDegrees(ulysses=4), (8, 3, 5), 2) == [pairs // 4] * 4
    round_a_ring = four.run(ranks.tile_pairs, ParallelDegrees(ring=4), (8, 3, 5), 2)
    assert sum(round_a_ring) == pairs
    assert max(round_a_ring) > min(round_a_ring)


@pytest.mark.parametrize("degrees", [ParallelDegrees(ulysses=4), ParallelDegrees(ulysses=2, cfg=2)], ids=_name)
def test_region_adaptive_sampling_equals_one_rank_and_keeps_only_its_part(
    four: RankPool, degrees: ParallelDegrees
) -> None:
    for errors, run, share in four.run(ranks.ras_errors, degrees, _ODD_GRID):
        assert max(errors) <= _MODEL_TOLERANCE
        assert run == [45, 45, 22, 45, 22, 22]
        assert 0.25 <= share < 0.35  # the last output is kept whole


@pytest.mark.parametrize("head_adaptive", [False, True])
@pytest.mark.parametrize("degrees", [ParallelDegrees(ulysses=4), ParallelDegrees(ulysses=2, cfg=2)], ids=_name)
def test_adaspa_on_four_ranks_equals_one_and_keeps_only_its_part(
    four: RankPool, degrees: ParallelDegrees, head_adaptive: bool
) -> None:
    for errors, sparsities, share in four.run(ranks.adaspa_errors, degrees, (7, 3, 5), head_adaptive):
        assert max(errors) <= _MODEL_TOLERANCE
        assert sparsities[:2] == [0.0, 0.0]
        assert min(sparsities[2:]) > 0.4
        assert share == pytest.approx(0.25)


def test_gradients_are_refused_rather_than_cut_off(two: RankPool) -> None:
    for degrees in _TWO:
        assert all("no backward" in message for message in two.run(ranks.with_gradient, degrees))


def test_a_rank_that_fails_ends_the_others_that_wait_for_it() -> None:
    with RankPool(2) as pool:
        with pytest.raises(RankFailed, match="this rank has had enough"):
            pool.run(ranks.fail_on, 1)
        with pytest.raises(RankFailed, match="closed"):
            pool.run(ranks.fail_on, 1)
