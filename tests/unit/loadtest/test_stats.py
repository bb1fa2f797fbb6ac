import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from loadtest.stats import (
    binomial_cdf,
    describe,
    mean_interval,
    quantile,
    quantile_ranks,
    required_samples,
    share_interval,
)


@pytest.mark.parametrize(("q", "floor"), [(0.9, 64), (0.99, 662)])
def test_the_floors_are_those_of_mlperf_early_stopping(q: float, floor: int) -> None:
    assert required_samples(q) == floor


@given(q=st.floats(0.01, 0.999), confidence=st.floats(0.5, 0.999))
def test_the_floor_is_the_smallest_sample_that_meets_its_definition(q: float, confidence: float) -> None:
    floor = required_samples(q, confidence=confidence)
    rare = 1 - max(q, 1 - q)
    assert scipy_stats.binom.cdf(1, floor, rare) <= 1 - confidence + 1e-9
    assert floor == 1 or scipy_stats.binom.cdf(1, floor - 1, rare) > 1 - confidence - 1e-9


@pytest.mark.parametrize("q", [0.0, 1.0, -0.1, math.nan])
def test_a_quantile_outside_of_0_to_1_is_refused(q: float) -> None:
    with pytest.raises(ValueError, match="q is"):
        required_samples(q)


@pytest.mark.parametrize(("q", "floor"), [(0.9, 64), (0.99, 662)])
def test_a_quantile_is_refused_one_sample_below_its_floor_and_given_at_it(q: float, floor: int) -> None:
    values = [float(index) for index in range(floor)]
    below = quantile(values[:-1], q)
    assert below.value_s is None
    assert below.refusal == f"{floor - 1} samples; p{100 * q:g} needs {floor}"
    assert quantile(values, q).value_s == values[math.ceil(q * floor) - 1]


@given(st.lists(st.floats(0, 1e6), min_size=64, max_size=300), st.sampled_from([0.5, 0.9]))
def test_quantiles_agree_with_numpys_inverted_distribution_function(values: list[float], q: float) -> None:
    got = quantile(sorted(values), q)
    assert got.value_s == np.quantile(values, q, method="inverted_cdf")
    assert got.low_s is not None
    assert got.low_s <= got.value_s


def test_failures_count_as_infinitely_slow() -> None:
    values = [1.0] * 950
    assert quantile(values, 0.9, num_failed=50).value_s == 1.0
    failed = quantile(values, 0.99, num_failed=50)
    assert failed.value_s is None
    assert failed.refusal == "50 of 1000 failed, so p99 is a failure"
    edge = quantile([1.0] * 990, 0.99, num_failed=10)
    assert (edge.value_s, edge.high_s) == (1.0, None)


def test_nothing_has_no_figures() -> None:
    empty = describe([])
    assert (empty.mean_s, empty.min_s, empty.max_s, empty.num_values) == (None, None, None, 0)
    assert all(entry.value_s is None and entry.refusal for entry in empty.quantiles)
    assert share_interval(0, 0) is None
    with pytest.raises(ValueError, match="0 values"):
        mean_interval([])
    with pytest.raises(KeyError):
        empty.quantile(0.123)


@given(n=st.integers(1, 100_000), share=st.floats(0, 1), p=st.floats(1e-6, 1 - 1e-6))
@settings(max_examples=300)
def test_the_binomial_distribution_agrees_with_scipy(n: int, share: float, p: float) -> None:
    k = round(share * n)
    assert binomial_cdf(k, n, p) == pytest.approx(scipy_stats.binom.cdf(k, n, p), abs=1e-8)


@given(n=st.integers(1, 5000), share=st.floats(0, 1))
def test_the_interval_of_a_share_agrees_with_scipys_exact_one(n: int, share: float) -> None:
    hits = round(share * n)
    ours = share_interval(hits, n)
    theirs = scipy_stats.binomtest(hits, n).proportion_ci(method="exact")
    assert ours is not None
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-7)


@given(n=st.integers(1, 20_000), q=st.sampled_from([0.5, 0.9, 0.99]))
def test_the_ranks_of_a_quantile_are_the_tightest_that_leave_out_at_most_a_tail_on_each_side(n: int, q: float) -> None:
    low, high = quantile_ranks(q, n)
    law = scipy_stats.binom(n, q)
    assert law.cdf(low - 1) <= 0.025 + 1e-9 < law.cdf(low) + 2e-9
    assert law.sf(high - 1) <= 0.025 + 1e-9
    assert high == 0 or law.sf(high - 2) > 0.025 - 1e-9


def test_the_interval_of_a_quantile_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    truth = -math.log(0.1)  # the 0.9-quantile of a unit exponential
    hits = 0
    for _ in range(400):
        got = quantile(sorted(rng.exponential(size=200).tolist()), 0.9)
        assert got.low_s is not None
        assert got.high_s is not None
        hits += got.low_s <= truth <= got.high_s
    assert hits >= scipy_stats.binom.ppf(0.001, 400, 0.95)


def test_the_interval_of_a_mean_is_seeded_and_covers_the_truth() -> None:
    rng = np.random.default_rng(6)
    hits = 0
    for run in range(200):
        got = mean_interval(rng.exponential(size=200).tolist(), seed=run)
        hits += got.low <= 1.0 <= got.high
    assert hits >= 200 * 0.85  # a bootstrap of skewed data covers a little less than it says
    values = [random.random() for _ in range(100)]
    assert mean_interval(values, seed=1) == mean_interval(values, seed=1)


def test_neighbours_that_are_alike_widen_the_interval_of_a_mean() -> None:
    rng = np.random.default_rng(7)
    independent = rng.normal(size=4000)
    alike = np.repeat(independent[:250], 16)
    wide, narrow = mean_interval(alike.tolist()), mean_interval(rng.permutation(alike).tolist())
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_mean_interval_of_one_value_is_that_value() -> None:
    got = mean_interval([3.0])
    assert (got.value, got.low, got.high) == (3.0, 3.0, 3.0)
