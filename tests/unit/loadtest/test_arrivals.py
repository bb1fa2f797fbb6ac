import math
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.arrivals import bounded, gamma, poisson, trace, uniform

RATES = st.floats(0.1, 5000.0)
SEEDS = st.integers(0, 2**32 - 1)


@given(rate=RATES, num=st.integers(1, 500))
def test_uniform_times_are_multiples_of_the_gap(rate: float, num: int) -> None:
    assert list(islice(uniform(rate), num)) == [index / rate for index in range(num)]


def test_uniform_does_not_drift_after_a_million_requests() -> None:
    last = next(islice(uniform(3.0), 3_000_000, None))
    assert last == 1_000_000.0


@given(rate=RATES, cv=st.floats(0.2, 4.0), seed=SEEDS)
@settings(max_examples=40)
def test_gamma_gaps_have_the_mean_and_the_variation_asked_for(rate: float, cv: float, seed: int) -> None:
    num = 20_000
    gaps = np.diff([0.0, *islice(gamma(rate, cv=cv, seed=seed), num)])
    # The mean of n gaps deviates by cv/sqrt(n) relative; six of those are never seen. The deviation of the standard
    # deviation depends on the kurtosis 3 + 6 cv^2 of a gamma distribution.
    assert gaps.mean() * rate == pytest.approx(1.0, abs=6 * cv / math.sqrt(num))
    error = math.sqrt((2 + 6 * cv**2) / (4 * num))
    assert gaps.std() * rate / cv == pytest.approx(1.0, abs=6 * error + 0.01)


@given(rate=RATES, seed=SEEDS)
@settings(max_examples=20)
def test_poisson_counts_in_equal_windows_have_equal_mean_and_variance(rate: float, seed: int) -> None:
    windows = 2000
    times = bounded(poisson(rate, seed=seed), duration_s=windows * 5 / rate)
    counts = np.histogram(times, bins=windows, range=(0.0, windows * 5 / rate))[0]
    assert counts.mean() == pytest.approx(5.0, abs=6 * math.sqrt(5.0 / windows))
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=6 * math.sqrt(2.0 / windows))


@given(seed=SEEDS, cv=st.floats(0.2, 4.0), num=st.integers(1, 3000))
@settings(max_examples=30)
def test_the_same_seed_gives_the_same_times_and_a_longer_run_begins_like_a_shorter_one(
    seed: int, cv: float, num: int
) -> None:
    short = list(islice(gamma(10.0, cv=cv, seed=seed), num))
    assert list(islice(gamma(10.0, cv=cv, seed=seed), 2 * num))[:num] == short
    assert all(later >= earlier for earlier, later in pairwise(short))


def test_another_seed_gives_other_times() -> None:
    assert list(islice(poisson(10.0, seed=1), 5)) != list(islice(poisson(10.0, seed=2), 5))


def test_trace_is_replayed_at_the_speed_asked_for() -> None:
    assert list(trace([0.0, 1.0, 1.0, 4.0], speed=2.0)) == [0.0, 0.5, 0.5, 2.0]


@pytest.mark.parametrize("times", [[1.0, 0.5], [-1.0], [math.nan], [0.0, math.inf]])
def test_a_trace_that_is_no_timeline_is_refused_by_position(times: list[float]) -> None:
    with pytest.raises(ValueError, match=r"times_s\[\d\]"):
        trace(times)


@pytest.mark.parametrize("rate", [0.0, -1.0, math.inf, math.nan])
def test_a_rate_that_is_no_rate_is_refused(rate: float) -> None:
    for make in (uniform, lambda r: poisson(r, seed=0), lambda r: gamma(r, cv=1.0, seed=0)):
        with pytest.raises(ValueError, match="rate_per_s"):
            make(rate)
    with pytest.raises(ValueError, match="cv"):
        gamma(1.0, cv=rate, seed=0)


def test_bounds_cut_at_the_duration_exclusive_and_at_the_number() -> None:
    assert bounded(uniform(10.0), duration_s=0.5) == [0.0, 0.1, 0.2, 0.3, 0.4]
    assert bounded(uniform(10.0), duration_s=0.5, num_requests=2) == [0.0, 0.1]
    assert bounded([0.0, 9.0]) == [0.0, 9.0]


def test_endless_arrivals_without_a_bound_are_refused_instead_of_filling_the_memory() -> None:
    with pytest.raises(ValueError, match="duration_s"):
        bounded(uniform(1.0))
