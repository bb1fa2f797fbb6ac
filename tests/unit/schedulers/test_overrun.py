from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedulers.overrun import Overrun

ratios = st.floats(0.01, 10.0)


def seen(*ratios: float) -> Overrun:
    overrun = Overrun()
    for ratio in ratios:
        overrun.observe(2.0, 2.0 * ratio)
    return overrun


def test_much_is_set_aside_before_anything_is_known_and_little_once_predictions_hold() -> None:
    factors = [seen(*[0.5] * count).factor for count in range(40)]
    assert factors == sorted(factors, reverse=True)
    assert factors[0] == 8.0
    assert factors[3] < 2.0
    assert 1.0 <= factors[-1] < 1.1


@given(st.lists(ratios, min_size=1, max_size=30), ratios)
def test_the_dearest_of_the_last_ones_is_within_the_factor(earlier: list[float], newest: float) -> None:
    assert seen(*earlier, newest).factor >= newest


def test_a_slow_moment_is_forgotten_slowly() -> None:
    assert seen(*[1.0] * 40, 4.0).factor == pytest.approx(5.0)
    assert seen(*[1.0] * 40, 4.0, *[1.0] * 35).factor == pytest.approx(1.25 * 2.5, rel=0.05)
    assert seen(*[1.0] * 40, 4.0, *[1.0] * 400).factor == pytest.approx(1.25, rel=0.01)


def test_factor_is_bounded() -> None:
    assert seen(1e9).factor == 16.0
    assert seen(*[1e-9] * 500).factor == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(
    ("predicted_s", "actual_s"), [(0.0, 1.0), (1.0, 0.0), (math.nan, 1.0), (1.0, math.inf), (1.0, -1.0)]
)
def test_what_is_no_prediction_or_took_no_time_teaches_nothing(predicted_s: float, actual_s: float) -> None:
    overrun = Overrun()
    overrun.observe(predicted_s, actual_s)
    assert overrun.factor == 8.0
