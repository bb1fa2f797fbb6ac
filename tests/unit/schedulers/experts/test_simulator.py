from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest

from schedulers.lab.experts import Outcome, Popularity, Ranks, System, Traffic, binomial, chances, routed, simulate

RANKS = Ranks(num_ranks=8, num_slots=40, num_nodes=2)
TRAFFIC = Traffic(num_layers=2, num_experts=32, top_k=4, tokens_per_step=1024, curse_steps=120)
SYSTEMS = (
    System(name="in order, in turns", balancing="none", choose=RANKS.in_turns, period=40),
    System(name="global, in turns", balancing="global", choose=RANKS.in_turns, period=40),
    System(name="global, fewest awake", balancing="global", choose=RANKS.fewest_awake, period=40),
    System(name="hierarchical, in turns", balancing="hierarchical", choose=RANKS.in_turns, period=40),
)


def outcomes(traffic: Traffic, num_steps: int = 240) -> dict[str, Outcome]:
    trace = traffic.steps(num_steps)
    return {system.name: simulate(system, RANKS, trace, warm_up=120) for system in SYSTEMS}


@pytest.mark.parametrize("changes", [{}, {"drift_steps": 480}, {"cursed": 0.3}], ids=["skewed", "drifting", "cursed"])
def test_balancing_lowers_the_fullest_rank_and_the_time(changes: dict[str, Any]) -> None:
    found = outcomes(replace(TRAFFIC, **changes))
    base = found["in order, in turns"]
    assert base.moves == base.switches == base.copied_bytes == 0
    for name in ("global, in turns", "hierarchical, in turns"):
        assert found[name].imbalance < 0.8 * base.imbalance
        assert found[name].layer_us < 0.9 * base.layer_us
        assert found[name].switches > 0
        assert 0 < found[name].copied_bytes <= found[name].moves * RANKS.expert_bytes


def test_small_batches_gain_by_fewer_awake_experts_and_large_ones_lose_nothing() -> None:
    small, large = outcomes(replace(TRAFFIC, tokens_per_step=12)), outcomes(TRAFFIC)
    assert small["global, fewest awake"].layer_us < 0.9 * small["global, in turns"].layer_us
    assert large["global, fewest awake"].layer_us <= large["global, in turns"].layer_us


def test_traffic_that_stays_as_it_is_is_not_followed_around() -> None:
    """What fits the accidents of one window does not pay in the next."""
    moves = [simulate(SYSTEMS[1], RANKS, TRAFFIC.steps(steps)).moves for steps in (160, 480)]
    assert 0 < moves[1] < 2 * moves[0]


def test_drawn_alone_is_nearly_drawn_one_after_the_other() -> None:
    rng = Random(0)
    popularity = Popularity.zipf(32, 1.0, rng)
    exact = routed(popularity, 20_000, 4, rng)
    assert sum(exact) == 80_000
    assert [20_000 * chance for chance in chances(popularity, 4)] == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize("chance", [0.0, 0.002, 0.3, 0.97])
def test_binomial_has_its_mean_and_spread(chance: float) -> None:
    rng = Random(1)
    drawn = [binomial(200, chance, rng) for _ in range(4000)]
    mean = sum(drawn) / len(drawn)
    variance = sum((number - mean) ** 2 for number in drawn) / len(drawn)
    assert all(0 <= number <= 200 for number in drawn)
    assert mean == pytest.approx(200 * chance, abs=0.05 + 0.01 * 200 * chance)
    assert variance == pytest.approx(200 * chance * (1 - chance), rel=0.15)
