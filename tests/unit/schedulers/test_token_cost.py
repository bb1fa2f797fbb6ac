"""Prices per token follow what was observed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedulers.plan import Budget, most
from schedulers.token_cost import TokenCost, TokenPrices

FIRST = TokenPrices(prefill_s=1.0, decode_s=1.0, interval_s=1.0)


def observe(cost: TokenCost, prefill_s: float = 1e-3, decode_s: float = 1e-2, interval_s: float = 2e-2) -> None:
    cost.observe(
        7.0,
        prefill_tokens=100,
        prefill_s=100 * prefill_s,
        decode_tokens=50,
        decode_s=50 * decode_s,
        answer_s=50 * interval_s,
    )


def test_the_first_observation_replaces_the_guess() -> None:
    cost = TokenCost(FIRST)
    observe(cost)
    prices = cost.prices
    assert (prices.prefill_s, prices.decode_s, prices.interval_s) == pytest.approx((1e-3, 1e-2, 2e-2))
    assert cost.seconds(200, 10) == pytest.approx(0.3)


def test_prices_follow_a_change() -> None:
    cost = TokenCost(FIRST)
    for _ in range(50):
        observe(cost, decode_s=1e-2)
    for _ in range(50):
        observe(cost, decode_s=3e-2)
    assert cost.prices.decode_s == pytest.approx(3e-2, rel=0.02)


def test_what_was_not_measured_teaches_nothing() -> None:
    cost = TokenCost(FIRST)
    cost.observe(0.0, prefill_tokens=0, prefill_s=1.0, decode_tokens=0, decode_s=0.0, answer_s=math.inf)
    assert cost.prices == replace(FIRST, answer_tokens=1.0)


def test_prices_are_known_for_a_while_after_an_observation() -> None:
    cost = TokenCost(FIRST)
    assert not cost.is_known(0.0, max_age_s=10.0)
    observe(cost)
    assert cost.is_known(17.0, max_age_s=10.0)
    assert not cost.is_known(17.1, max_age_s=10.0)
    assert cost.prices.answer_tokens == 51.0


PROMPT = {"prompt_tokens": 100.0}


def test_how_many_tokens_fit() -> None:
    cost = TokenCost(FIRST)
    observe(cost)

    def fitting(num_choices: int = 1, **budget: float) -> float:
        return most(cost.priced(10.0, num_choices), PROMPT, "output_tokens", Budget(**budget))

    assert fitting(energy_j=10.0 * (0.1 + 0.05)) == pytest.approx(5.0)
    assert fitting(2, energy_j=2 * 10.0 * (0.1 + 0.05)) == pytest.approx(5.0)
    assert fitting(latency_s=0.1 + 0.1) == pytest.approx(5.0)
    assert fitting(2, latency_s=0.1 + 0.1) == pytest.approx(5.0)  # they run at the same time
    assert fitting(latency_s=0.2, energy_j=1.1) == pytest.approx(1.0)
    assert fitting(energy_j=0.5) < 0
    assert fitting(latency_s=math.inf) == fitting() == math.inf


@given(st.floats(1e-6, 1e3), st.integers(0, 10_000), st.floats(1e-6, 1.0))
def test_what_fits_is_within_the_budget(seconds: float, prefill: int, price: float) -> None:
    cost = TokenCost(TokenPrices(prefill_s=price, decode_s=price, interval_s=price)).priced(3.0, 1)
    tokens = math.floor(most(cost, {"prompt_tokens": prefill}, "output_tokens", Budget(latency_s=seconds)))
    if tokens > 0:
        assert cost.latency({"prompt_tokens": prefill, "output_tokens": tokens}) <= seconds


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="decode_s is 0"):
        TokenPrices(prefill_s=1.0, decode_s=0.0, interval_s=1.0)
    with pytest.raises(ValueError, match="weight is 0"):
        TokenCost(FIRST, weight=0.0)
