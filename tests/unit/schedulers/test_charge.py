"""What rows are charged now: alone or in batches, on this machine or on a slower one."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedulers.charge import Charge

SHARE_S, ALONE_S = 0.001, 0.008


def learnt(*charged_s: float) -> Charge:
    charge = Charge()
    for seconds in charged_s:
        charge.observe(SHARE_S, seconds)
    return charge


def batch_s(rows: int) -> float:
    """On a line through one row and sixteen."""
    return ALONE_S + (rows - 1) * (16 * SHARE_S - ALONE_S) / 15


@pytest.mark.parametrize("rows", [1, 2, 5, 16])
def test_before_anything_ran_rows_share_the_batch_that_they_are(rows: int) -> None:
    assert Charge().expected_s(SHARE_S, ALONE_S, rows) == pytest.approx(batch_s(rows) / rows)


def test_more_rows_than_the_usual_batch_cost_no_less() -> None:
    assert Charge().expected_s(SHARE_S, ALONE_S, 64) == SHARE_S


def test_full_batches_make_a_row_as_cheap_as_its_share() -> None:
    assert learnt(*[SHARE_S] * 9).expected_s(SHARE_S, ALONE_S, 1) == pytest.approx(SHARE_S)


def test_a_machine_half_as_fast_charges_twice_as_much_alone_and_together() -> None:
    charge = learnt(*[2 * ALONE_S] * 9)
    assert charge.expected_s(SHARE_S, ALONE_S, 1) == pytest.approx(2 * ALONE_S)
    assert charge.expected_s(SHARE_S, ALONE_S, 16) == pytest.approx(2 * SHARE_S)


def test_single_rows_on_an_idle_machine_say_nothing_of_a_request_of_many() -> None:
    assert learnt(*[ALONE_S] * 99).expected_s(SHARE_S, ALONE_S, 16) == pytest.approx(SHARE_S)


def test_it_follows_the_load_slowly() -> None:
    charge = learnt(*[ALONE_S] * 99)
    charge.observe(SHARE_S, SHARE_S)
    once = charge.expected_s(SHARE_S, ALONE_S, 1)
    assert 0.85 * ALONE_S < once < ALONE_S
    for _ in range(60):
        charge.observe(SHARE_S, SHARE_S)
    assert charge.expected_s(SHARE_S, ALONE_S, 1) == pytest.approx(SHARE_S, rel=0.05)


def test_a_point_that_nobody_measured_is_charged_as_others_were() -> None:
    assert Charge().expected_s(SHARE_S, 0.0, 1) == SHARE_S
    assert learnt(*[3 * SHARE_S] * 9).expected_s(SHARE_S, 0.0, 1) == pytest.approx(3 * SHARE_S)


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf, math.nan])
def test_what_is_no_positive_time_teaches_nothing(seconds: float) -> None:
    charge = learnt(2 * SHARE_S)
    charge.observe(SHARE_S, seconds)
    charge.observe(seconds, SHARE_S)
    assert charge.expected_s(SHARE_S, 0.0, 1) == pytest.approx(2 * SHARE_S)


@given(st.lists(st.floats(1e-9, 1e9), max_size=30), st.floats(1e-6, 1.0), st.floats(1.0, 40.0), st.integers(1, 64))
def test_it_stays_within_bounds(charged: list[float], share_s: float, alone: float, rows: int) -> None:
    charge = Charge()
    for seconds in charged:
        charge.observe(share_s, seconds)
    expected = charge.expected_s(share_s, alone * share_s, rows)
    assert 0.1 * share_s * (1 - 1e-9) <= expected <= 64 * share_s * (1 + 1e-9)
