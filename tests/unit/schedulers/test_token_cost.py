"""Prices per token follow what was observed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_how_many_tokens_fit() -> None:
    cost = TokenCost(FIRST)
    observe(cost)
    assert cost.tokens_for(0.1 + 0.0501, prefill_tokens=100) == 5
    assert cost.tokens_within(0.1 + 0.1001, prefill_tokens=100) == 5
    assert cost.tokens_for(0.05, prefill_tokens=100) <= 0
    assert cost.tokens_for(math.inf, prefill_tokens=100) == 10**9


@given(st.floats(1e-6, 1e3), st.integers(0, 10_000), st.floats(1e-6, 1.0))
def test_what_fits_is_within_the_budget(seconds: float, prefill: int, price: float) -> None:
    cost = TokenCost(TokenPrices(prefill_s=price, decode_s=price, interval_s=price))
    tokens = cost.tokens_for(seconds, prefill)
    if tokens > 0:
        assert cost.seconds(prefill, tokens) <= seconds * (1 + 1e-9) + 1e-9


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="decode_s is 0"):
        TokenPrices(prefill_s=1.0, decode_s=0.0, interval_s=1.0)
    with pytest.raises(ValueError, match="weight is 0"):
        TokenCost(FIRST, weight=0.0)
