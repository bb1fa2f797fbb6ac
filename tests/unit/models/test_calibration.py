"""Threshold search against a brute-force twin, and what must hold for any samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.methods.early_exit.calibration import (
    ALWAYS,
    NEVER,
    PAPER_FACTORS,
    calibrate,
    estimate,
    exits_taken,
    find_thresholds,
    first_exit_only,
    geometric_ratios,
    no_early_exit,
    target_shares,
)

COSTS = (10.0, 50.0, 90.0, 100.0)


def brute_force_thresholds(confidences: np.ndarray, shares: Sequence[float]) -> tuple[float, ...]:
    """The same walk one sample at a time, written from the paper's description."""
    num_exits, num_samples = confidences.shape
    has_left = [False] * num_samples
    thresholds = []
    for k in range(num_exits - 1):
        wanted = math.floor(num_samples * shares[k])
        order = sorted(range(num_samples), key=lambda i: -confidences[k, i])
        threshold, count = NEVER, 0
        for i in order:
            if not has_left[i]:
                count += 1
                if count == wanted:
                    threshold = float(confidences[k, i])
                    break
        for i in range(num_samples):
            has_left[i] = has_left[i] or bool(confidences[k, i] >= threshold)
        thresholds.append(threshold)
    return (*thresholds, ALWAYS)


def brute_force_exits(confidences: np.ndarray, thresholds: Sequence[float]) -> list[int]:
    num_exits = len(thresholds)
    return [
        next((k for k in range(num_exits - 1) if confidences[k, i] >= thresholds[k]), num_exits - 1)
        for i in range(confidences.shape[1])
    ]


def samples(seed: int, count: int, decimals: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Confidences with ties (few decimals) and correctness that follows them; later exits are not always better."""
    rng = np.random.default_rng(seed)
    confidences = rng.uniform(0.1, 1.0, (4, count)).round(decimals).astype(np.float32)
    return confidences, rng.uniform(size=(4, count)) < confidences * rng.uniform(0.8, 1.0, (4, 1))


shares_strategy = st.builds(
    target_shares,
    st.floats(0.05, 20.0),
    st.lists(st.sampled_from([0.0, 0.5, 0.85, 1.0]), min_size=3, max_size=3).map(lambda f: [*f, 1.0]),
)


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 6), shares_strategy)
@settings(max_examples=200)
def test_thresholds_equal_the_brute_force_walk(seed: int, count: int, decimals: int, shares: list[float]) -> None:
    confidences, _ = samples(seed, count, decimals)
    thresholds = find_thresholds(confidences, shares)
    assert thresholds == brute_force_thresholds(confidences, shares)
    assert exits_taken(confidences, thresholds).tolist() == brute_force_exits(confidences, thresholds)


@given(st.floats(0.01, 100.0), st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3))
def test_shares_are_a_distribution_and_a_factor_of_zero_leaves_the_exit_out(ratio: float, factors: list[float]) -> None:
    shares = target_shares(ratio, [*factors, 1.0])
    assert all(share >= 0 for share in shares)
    assert sum(shares) == pytest.approx(1.0)
    assert all(share == 0 for share, factor in zip(shares, factors, strict=False) if factor == 0)


def test_without_factors_shares_are_geometric() -> None:
    shares = target_shares(0.5, (1.0, 1.0, 1.0, 1.0))
    assert shares == pytest.approx([8 / 15, 4 / 15, 2 / 15, 1 / 15])


def test_the_papers_factors_on_equal_shares() -> None:
    # By hand: quarters; exit 1 keeps .85 of its quarter, the rest splits evenly; exit 3 then keeps half of its part.
    first = 0.25 * 0.85
    second = (1 - first) / 3
    third = second * 0.5
    assert target_shares(1.0, PAPER_FACTORS) == pytest.approx([first, second, third, 1 - first - second - third])


def test_there_are_33_ratios_from_a_fifth_to_five() -> None:
    ratios = geometric_ratios()
    assert len(ratios) == 33
    assert ratios == sorted(ratios)
    assert (ratios[0], ratios[-1]) == (0.2, 5.0)


def test_an_exit_that_cannot_fill_its_share_is_never_used() -> None:
    confidences = np.array([[0.9, 0.9, 0.9], [0.8, 0.7, 0.6], [0.5, 0.5, 0.5], [0.1, 0.1, 0.1]], np.float32)
    # The ties at exit 1 all leave with the first, so nobody is left for exit 2.
    assert find_thresholds(confidences, [0.34, 0.34, 0.32, 0.0])[1] == NEVER
    assert find_thresholds(confidences, [0.1, 0.9, 0.0, 0.0])[0] == NEVER  # a share below one sample


@given(st.integers(0, 10_000), st.integers(1, 60), shares_strategy)
@settings(max_examples=100)
def test_estimates_conserve_samples_and_lie_between_the_extremes(seed: int, count: int, shares: list[float]) -> None:
    confidences, correct = samples(seed, count)
    found = estimate(confidences, correct, COSTS, find_thresholds(confidences, shares))
    assert sum(found.exit_shares) == pytest.approx(1.0)
    assert COSTS[0] - 1e-9 <= found.expected_cost <= COSTS[-1] + 1e-9
    taken = brute_force_exits(confidences, found.thresholds)
    assert found.accuracy == pytest.approx(np.mean([correct[k, i] for i, k in enumerate(taken)]))


@given(st.integers(0, 10_000))
@settings(max_examples=10)
def test_calibrated_points_keep_to_their_targets_and_beat_the_papers_thresholds(seed: int) -> None:
    confidences, correct = samples(seed, 200)
    targets = [30.0, 60.0, 95.0]
    paper = [
        estimate(confidences, correct, COSTS, find_thresholds(confidences, target_shares(ratio, PAPER_FACTORS)))
        for ratio in geometric_ratios()
    ]
    for target, found in zip(targets, calibrate(confidences, correct, COSTS, targets), strict=True):
        assert found.expected_cost <= target
        rivals = [p.accuracy for p in paper if 0.9 * target <= p.expected_cost <= target]
        assert not rivals or found.accuracy >= max(rivals)


def test_an_exit_worse_than_the_one_before_it_is_left_out() -> None:
    rng = np.random.default_rng(0)
    confidences = rng.uniform(0.2, 1.0, (4, 400)).astype(np.float32)
    correct = np.ones((4, 400), bool)
    correct[0] = confidences[0] > 0.6  # sure means right
    correct[2] = False  # exit 3 is never right, however sure
    (found,) = calibrate(confidences, correct, COSTS, [70.0])
    assert found.exit_shares[2] == 0
    assert found.accuracy == 1.0


def test_a_target_below_the_cheapest_exit_is_refused_with_both_numbers() -> None:
    confidences, correct = samples(0, 50)
    with pytest.raises(ValueError, match="target cost 5 is below the cheapest operating point, 10"):
        calibrate(confidences, correct, COSTS, [5.0])


@pytest.mark.parametrize("shape", [(4, 0), (3, 5)])
def test_arrays_that_do_not_belong_together_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="do not belong together"):
        calibrate(np.zeros(shape, np.float32), np.zeros(shape, bool), COSTS, [50.0])


def test_extreme_thresholds() -> None:
    confidences, correct = samples(1, 30)
    assert set(exits_taken(confidences, no_early_exit(4)).tolist()) == {3}
    assert set(exits_taken(confidences, first_exit_only(4)).tolist()) == {0}
    assert estimate(confidences, correct, COSTS, no_early_exit(4)).expected_cost == COSTS[-1]
