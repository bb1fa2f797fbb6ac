"""What answers cost follows what was observed."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedulers.answer_cost import AnswerCost
from schedulers.cost import Units
from schedulers.plan import Budget, most

FIRST = {"image_tokens": 1.0, "prompt_tokens": 1.0, "output_tokens": 1.0, "token_steps": 1e-3}


def work(tokens: int, prompt: int = 100, image: int = 0) -> Units:
    return {"image_tokens": image, "prompt_tokens": prompt, "output_tokens": tokens}


def observe(cost: AnswerCost, read_s: float = 1e-3, write_s: float = 1e-2, interval_s: float = 2e-2) -> None:
    seconds = {"read_s": 100 * read_s, "write_s": 50 * write_s, "answer_s": 50 * interval_s}
    cost.observe(7.0, work(50), computed=1.0, tokens=51, **seconds)


def test_the_first_observation_replaces_the_guess() -> None:
    cost = AnswerCost(FIRST, watts=3.0)
    observe(cost)
    prices = cost.priced(1)
    assert (prices.busy_s["prompt_tokens"], prices.busy_s["output_tokens"]) == pytest.approx((1e-3, 1e-2))
    assert (prices.latency_s["output_tokens"], prices.watts) == (pytest.approx(2e-2), 3.0)
    assert cost.busy_s(work(10, prompt=200)) == pytest.approx(0.3)


def test_pictures_and_the_cache_behind_a_token_cost_beside_the_text() -> None:
    cost = AnswerCost(FIRST, watts=3.0)
    observe(cost)
    assert cost.busy_s(work(10, image=50)) == pytest.approx(0.1 + 0.05 + 0.1)
    assert cost.busy_s({**work(10), "token_steps": 1000.0}) == pytest.approx(0.1 + 0.1 + 0.01)


def test_what_a_cache_had_was_not_computed() -> None:
    cost = AnswerCost(FIRST, watts=3.0)
    cost.observe(7.0, work(50), computed=0.25, tokens=51, read_s=0.025, write_s=0.5, answer_s=1.0)
    assert cost.busy_s(work(0)) == pytest.approx(0.1)


def test_prices_follow_a_change() -> None:
    cost = AnswerCost(FIRST, watts=3.0)
    for write_s in (*[1e-2] * 50, *[3e-2] * 50):
        observe(cost, write_s=write_s)
    assert cost.priced(1).busy_s["output_tokens"] == pytest.approx(3e-2, rel=0.02)


def test_what_was_not_measured_teaches_nothing() -> None:
    cost = AnswerCost(FIRST, watts=3.0)
    before = cost.priced(1)
    cost.observe(0.0, work(0, prompt=0), computed=0.0, tokens=1, read_s=1.0, write_s=0.0, answer_s=math.inf)
    assert (cost.priced(1), cost.answer_tokens) == (before, 1.0)


def test_prices_are_known_for_a_while_after_an_observation() -> None:
    cost = AnswerCost(FIRST, watts=3.0)
    assert not cost.is_known(0.0, max_age_s=10.0)
    observe(cost)
    assert cost.is_known(17.0, max_age_s=10.0)
    assert not cost.is_known(17.1, max_age_s=10.0)
    assert cost.answer_tokens == 51.0


def test_how_many_tokens_fit() -> None:
    cost = AnswerCost(FIRST, watts=10.0)
    observe(cost)

    def fitting(num_choices: int = 1, **budget: float) -> int:
        return most(cost.priced(num_choices), work, 99, Budget(**budget))

    assert fitting(energy_j=10.0 * (0.1 + 0.055)) == 5
    assert fitting(2, energy_j=2 * 10.0 * (0.1 + 0.055)) == 5
    assert fitting(latency_s=0.1 + 0.11) == 5
    assert fitting(2, latency_s=0.1 + 0.11) == 5  # they run at the same time
    assert fitting(latency_s=0.21, energy_j=1.11) == 1
    assert fitting(energy_j=0.5) == 0
    assert fitting(latency_s=math.inf) == fitting() == 99


@given(st.floats(1e-6, 1e3), st.integers(0, 10_000), st.floats(1e-6, 1.0), st.integers(1, 500))
def test_what_fits_is_within_the_budget_and_one_more_is_not(
    seconds: float, prompt: int, price: float, limit: int
) -> None:
    cost = AnswerCost(dict.fromkeys(FIRST, price), watts=3.0).priced(1)

    def units(tokens: int) -> Units:
        return {**work(tokens, prompt), "token_steps": tokens * (prompt + tokens / 2)}

    tokens = most(cost, units, limit, Budget(latency_s=seconds))
    assert tokens == 0 or cost.latency(units(tokens)) <= seconds
    assert tokens == limit or cost.latency(units(tokens + 1)) > seconds


def test_what_an_answer_took_is_told_beside_what_it_was_predicted_to_take() -> None:
    cost = AnswerCost(FIRST, watts=3.0)
    seconds = {"read_s": 0.2, "write_s": 0.5, "answer_s": 1.0}
    first = cost.observe(7.0, work(50), computed=1.0, tokens=51, **seconds)
    assert [one.kind for one in first] == ["read", "write", "wait"]
    assert [one.actual_s for one in first] == [0.2, 0.5, 1.0]
    guessed = sum(
        FIRST[unit] * amount for unit, amount in work(50).items() if unit in ("image_tokens", "prompt_tokens")
    )
    assert first[0].predicted_s == pytest.approx(guessed)
    assert first[0].correction == pytest.approx(0.2 / guessed)
    again = cost.observe(8.0, work(50), computed=1.0, tokens=51, **seconds)
    assert [one.predicted_s for one in again] == pytest.approx([0.2, 0.5, 1.0])
    assert cost.observe(9.0, work(0), computed=0.0, tokens=1, read_s=0.0, write_s=0.0, answer_s=math.inf) == []
