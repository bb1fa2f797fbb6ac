"""P-values and bounds among benign values. Exchangeable values: each is as likely as any other to be the new one."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedulers.guard.conformal import (
    LEVEL,
    NO_BOUND,
    STEP,
    AdaptiveLevel,
    bound_tokens,
    p_value,
    p_value_of_low,
    quantile,
)

VALUES = st.lists(st.integers(-5, 5).map(float), min_size=2, max_size=40)
LEVELS = st.floats(0.001, 0.6)


@given(VALUES, LEVELS)
def test_of_exchangeable_values_no_more_than_a_share_has_a_p_value_that_small(
    values: list[float], level: float
) -> None:
    """Super-uniform, exactly, also among equal values."""
    others = [sorted(values[:i] + values[i + 1 :]) for i in range(len(values))]
    for p_of in (p_value, p_value_of_low):
        rare = sum(p_of(rest, value) <= level for rest, value in zip(others, values, strict=True))
        assert rare <= level * len(values) + 1e-9


@given(VALUES, LEVELS, st.data())
def test_of_exchangeable_values_no_more_than_a_share_exceeds_the_bound(
    values: list[float], level: float, data: st.DataObject
) -> None:
    """Those that were censored are above all others, wherever it was that they were cut off."""
    is_censored = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    exceeding = 0
    for i, value in enumerate(values):
        known = sorted(v for j, v in enumerate(values) if j != i and not is_censored[j])
        bound = quantile(known, len(values) - 1, level)
        exceeding += (math.inf if is_censored[i] else value) > bound
    assert exceeding <= level * len(values) + 1e-9


@pytest.mark.parametrize(("num", "level", "rank"), [(99, 0.01, 99), (199, 0.01, 198), (999, 0.001, 999), (10, 0.1, 10)])
def test_rank_is_that_of_finite_samples(num: int, level: float, rank: int) -> None:
    assert quantile([float(i) for i in range(1, num + 1)], num, level) == rank


def test_nothing_can_be_said_with_too_few_values_or_too_many_that_were_cut_off() -> None:
    assert quantile([0.0] * 98, 98, 0.01) == math.inf
    assert quantile([0.0] * 980, 1000, 0.01) == math.inf
    assert quantile([0.0] * 995, 1000, 0.01) == 0.0
    assert bound_tokens(3.0, math.inf) == NO_BOUND
    assert p_value([0.0] * 980, 1.0, num=1000) == pytest.approx(21 / 1001)


@given(st.integers(1, 5000), st.floats(-3.0, 3.0))
def test_bound_is_the_prediction_times_the_residual_in_whole_tokens(tokens: int, residual: float) -> None:
    bound = bound_tokens(math.log1p(tokens), residual)
    exact = (1 + tokens) * math.exp(residual) - 1
    assert bound >= 1
    assert exact - 1e-6 <= bound < max(1.0, exact) + 1 + 1e-6
    assert bound_tokens(math.log1p(tokens), 0.0) == tokens


def test_level_follows_traffic_until_the_target_is_met() -> None:
    """Answers twice as varied as those of the calibration: a bound that does not move misses its target by far."""
    draw = random.Random(5)
    benign = sorted(draw.gauss(0.0, 0.5) for _ in range(2000))
    fixed = moving = 0
    level = AdaptiveLevel()
    for _ in range(20_000):
        new = draw.gauss(0.0, 0.8)
        fixed += new > quantile(benign, len(benign), LEVEL)
        is_over = new > quantile(benign, len(benign), level.level)
        moving += is_over
        level = level.after(is_over)
    assert fixed / 20_000 > 0.05
    assert moving / 20_000 == pytest.approx(LEVEL, abs=0.004)


@given(st.lists(st.booleans(), max_size=300))
def test_level_stays_within_its_limits(ends: list[bool]) -> None:
    level = AdaptiveLevel()
    for is_over in ends:
        level = level.after(is_over)
        assert -STEP <= level.level <= 10 * LEVEL
        assert level.target == LEVEL


@pytest.mark.parametrize("wrong", [{"target": 0.0}, {"target": 1.0}, {"level": -0.1}, {"level": 0.2}])
def test_levels_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="; need "):
        AdaptiveLevel(**wrong)
