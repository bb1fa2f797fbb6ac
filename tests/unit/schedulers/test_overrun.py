from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedulers.admission import Cost, Factors
from schedulers.overrun import Overrun, Overruns

ratios = st.floats(0.01, 1000.0)


def seen(*ratios: float) -> Overrun:
    overrun = Overrun()
    for ratio in ratios:
        overrun.observe(2.0, 2.0 * ratio)
    return overrun


def test_much_is_set_aside_before_anything_is_known_and_little_once_predictions_hold() -> None:
    factors = [seen(*[0.5] * count).factor for count in range(40)]
    assert factors == sorted(factors, reverse=True)
    assert factors[0] == 100.0
    assert factors[1] < 3.0
    assert factors[3] < 2.0
    assert 1.0 <= factors[-1] < 1.1


def test_what_is_less_in_doubt_at_first_is_no_more_so_later() -> None:
    few = Overrun(2.0)
    assert few.factor == 2.0
    few.observe(1.0, 0.5)
    assert few.factor == pytest.approx(math.sqrt(2.0))


@given(st.lists(ratios, min_size=1, max_size=30), ratios)
def test_the_dearest_of_the_last_ones_is_within_the_factor(earlier: list[float], newest: float) -> None:
    assert seen(*earlier, newest).factor >= newest


def test_a_slow_moment_is_forgotten_slowly() -> None:
    assert seen(*[1.0] * 40, 4.0).factor == pytest.approx(5.0)
    assert seen(*[1.0] * 40, 4.0, *[1.0] * 35).factor == pytest.approx(1.25 * 2.5, rel=0.05)
    assert seen(*[1.0] * 40, 4.0, *[1.0] * 400).factor == pytest.approx(1.25, rel=0.01)


def test_factor_is_bounded_where_no_prediction_is_that_wrong() -> None:
    assert seen(67.0).factor == pytest.approx(1.25 * 67.0)
    assert seen(1e9).factor == 1e4
    assert seen(*[1e-9] * 500).factor == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(
    ("predicted", "actual"), [(0.0, 1.0), (math.nan, 1.0), (math.inf, 1.0), (1.0, math.inf), (1.0, -1.0)]
)
def test_what_is_no_prediction_teaches_nothing(predicted: float, actual: float) -> None:
    overrun = Overrun()
    overrun.observe(predicted, actual)
    assert overrun.factor == 100.0


def test_joules_say_nothing_of_seconds_and_seconds_nothing_of_joules() -> None:
    overruns = Overruns()
    assert overruns.factors == Factors(100.0, 100.0)
    for _ in range(100):
        overruns.observe(Cost(1.0, 0.5), Cost(67.0, 0.5))
    assert overruns.factors.joules == pytest.approx(1.25 * 67.0)
    assert overruns.factors.seconds == pytest.approx(1.25)


def test_what_did_not_run_teaches_nothing_and_work_without_joules_does() -> None:
    overruns = Overruns()
    overruns.observe(Cost(1.0, 1.0), Cost(0.0, 0.0))
    assert overruns.factors == Factors(100.0, 100.0)
    overruns.observe(Cost(1.0, 1.0), Cost(0.0, 1.0))
    assert overruns.factors.joules < 3.0
