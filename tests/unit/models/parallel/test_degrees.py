"""Degrees: which rank stands where."""

import pytest

from models.parallel.degrees import ParallelDegrees, check_heads, degrees_for, degrees_of_clip, narrower


def test_degrees_that_do_not_divide_the_world_are_refused_with_the_equation() -> None:
    with pytest.raises(
        ValueError, match=r"ulysses \(2\) \* ring \(3\) \* cfg \(1\) = 6 ranks do not divide a world of 4"
    ):
        ParallelDegrees(ulysses=2, ring=3).num_instances(4)


@pytest.mark.parametrize("axis", ["ulysses", "ring", "cfg", "expert"])
def test_degree_below_one_is_refused_by_name(axis: str) -> None:
    with pytest.raises(ValueError, match=f"{axis} degree is 0"):
        ParallelDegrees(**{axis: 0})


def test_guidance_has_two_branches_at_most() -> None:
    with pytest.raises(ValueError, match="cfg degree is 3"):
        ParallelDegrees(cfg=3)


def test_ulysses_neighbours_are_neighbours_in_the_world() -> None:
    degrees = ParallelDegrees(ulysses=2, ring=3, cfg=2)
    assert degrees.members("ulysses", 15) == (14, 15)
    assert degrees.members("ring", 15) == (13, 15, 17)
    assert degrees.members("sequence", 15) == (12, 13, 14, 15, 16, 17)
    assert degrees.members("cfg", 15) == (15, 21)


@pytest.mark.parametrize("axis", ["ulysses", "ring", "sequence", "cfg"])
def test_groups_of_an_axis_are_disjoint_and_cover_the_world(axis: str) -> None:
    degrees = ParallelDegrees(ulysses=2, ring=3, cfg=2)
    groups = {degrees.members(axis, rank) for rank in range(24)}
    assert sorted(rank for group in groups for rank in group) == list(range(24))
    assert all(rank in degrees.members(axis, rank) for rank in range(24))


def test_sequence_order_is_ring_then_ulysses_so_that_a_ring_block_is_one_run_of_tokens() -> None:
    degrees = ParallelDegrees(ulysses=2, ring=2)
    for place, rank in enumerate(degrees.members("sequence", 5)):
        where = degrees.coordinates(rank)
        assert where["instance"] == 1
        assert where["ring"] * 2 + where["ulysses"] == place


def test_heads_that_the_ulysses_degree_does_not_divide_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="24 heads, which the ulysses degree 5 does not divide"):
        check_heads(24, 5)
    check_heads(24, 8)


@pytest.mark.parametrize(
    ("num_ranks", "num_heads", "guided", "wanted"),
    [
        (1, 24, True, ParallelDegrees()),
        (4, 24, False, ParallelDegrees(ulysses=4)),
        (8, 24, True, ParallelDegrees(ulysses=4, cfg=2)),
        (5, 24, True, ParallelDegrees(ring=5)),
        (16, 24, False, ParallelDegrees(ulysses=8, ring=2)),
    ],
)
def test_chosen_degrees_use_every_rank_and_divide_the_heads(
    num_ranks: int, num_heads: int, guided: bool, wanted: ParallelDegrees
) -> None:
    assert degrees_for(num_ranks, num_heads, guided=guided) == wanted
    assert wanted.total == num_ranks


def test_narrower_degrees_go_from_one_rank_to_all() -> None:
    assert [one.total for one in narrower(ParallelDegrees(ulysses=4))] == [1, 2, 4]
    assert [one.total for one in narrower(ParallelDegrees(ulysses=2, ring=3))] == [1, 2, 6]
    assert narrower(ParallelDegrees()) == (ParallelDegrees(),)


def test_experts_that_are_dealt_out_need_every_rank() -> None:
    assert narrower(ParallelDegrees(expert=4)) == (ParallelDegrees(expert=4),)


@pytest.mark.parametrize(("num_tokens", "ranks"), [(5, 1), (19, 1), (20, 2), (39, 2), (40, 4), (10_000, 4)])
def test_a_clip_gets_as_many_ranks_as_keep_enough_tokens_each(num_tokens: int, ranks: int) -> None:
    assert degrees_of_clip(narrower(ParallelDegrees(ulysses=4)), num_tokens, 10).total == ranks
