from __future__ import annotations

from itertools import product
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from schedulers.experts.activation import choose, num_awake
from schedulers.experts.eplb import eplb
from schedulers.experts.placement import Placement
from schedulers.lab.experts import Popularity, routed


@st.composite
def steps(draw: st.DrawFn) -> tuple[Placement, list[int]]:
    """A placement of one layer, and tokens of a step."""
    num_ranks = draw(st.integers(1, 4))
    num_experts = draw(st.integers(1, 6))
    num_slots = (-(-num_experts // num_ranks) + draw(st.integers(0, 2))) * num_ranks
    more = draw(st.lists(st.integers(0, num_experts - 1), min_size=num_slots, max_size=num_slots))
    slots = draw(st.permutations([*range(num_experts), *more][:num_slots]))
    tokens = draw(st.lists(st.integers(0, 3), min_size=num_experts, max_size=num_experts))
    return Placement(1, num_experts, num_ranks, (tuple(slots),)), tokens


@given(steps())
def test_no_choice_has_fewer_awake_on_the_fullest_rank(step: tuple[Placement, list[int]]) -> None:
    placement, tokens = step
    chosen = choose(placement.slots[0], tokens, placement.num_ranks)

    def fullest(slots: tuple[tuple[int, ...], ...]) -> int:
        return max(num_awake(slots, tokens, placement.num_ranks, placement.num_slots))

    for expert, slots in enumerate(chosen):
        assert len(slots) == 1
        assert placement.slots[0][slots[0]] == expert
    every = product(*([(slot,) for slot in slots] for slots in placement.replicas[0]))
    assert fullest(tuple(chosen)) == min(map(fullest, every))


@given(steps(), st.sampled_from((0.25, 1.0, 4.0)))
def test_shares_tokens_among_replicas_where_that_is_faster(
    step: tuple[Placement, list[int]], tokens_per_read: float
) -> None:
    placement, tokens = step

    def reads(chosen: list[tuple[int, ...]]) -> float:
        awake = num_awake(chosen, tokens, placement.num_ranks, placement.num_slots)
        work = [0.0] * placement.num_ranks
        for count, slots in zip(tokens, chosen, strict=True):
            for slot in slots:
                work[placement.rank_of(slot)] += count / len(slots) / tokens_per_read
        return max(*awake, *work)

    alone = list(choose(placement.slots[0], tokens, placement.num_ranks))
    chosen = list(choose(placement.slots[0], tokens, placement.num_ranks, tokens_per_read))
    every = list(placement.replicas[0])
    assert chosen in (alone, every)
    assert reads(chosen) == min(reads(alone), reads(every))


def test_far_below_taking_turns_and_near_the_bound() -> None:
    """128 experts, 8 of them a token, 8 ranks with 160 slots placed by EPLB."""
    for exponent, batch in product((0.5, 0.75, 1.0), (8, 16, 32, 64, 128)):
        rng, turns, ours, bound = Random(0), 0, 0, 0
        for _ in range(3):
            popularity = Popularity.zipf(128, exponent, rng)
            placement = eplb([routed(popularity, 512, 8, rng)], 160, 8)
            for _ in range(4):
                tokens = routed(popularity, batch, 8, rng)
                turns += max(num_awake(placement.replicas[0], tokens, 8, 160))
                ours += max(num_awake(choose(placement.slots[0], tokens, 8), tokens, 8, 160))
                bound += -(-sum(map(bool, tokens)) // 8)
        assert ours <= 0.85 * turns
        assert batch < 32 or ours <= 1.1 * bound
