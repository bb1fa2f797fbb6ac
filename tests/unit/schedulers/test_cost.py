from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedulers.cost import TableCostModel


def test_measured_sizes_are_returned_as_measured() -> None:
    cost = TableCostModel((1, 4, 16), [[0.001, 0.002, 0.008], [0.003, 0.003, 0.004]])
    assert [cost.batch_s(0, n) for n in (1, 4, 16)] == [0.001, 0.002, 0.008]
    assert cost.num_stages == 2


@pytest.mark.parametrize(("num_samples", "expected_s"), [(2, 0.002), (8, 0.004), (32, 0.016), (2000, 1.0)])
def test_between_sizes_it_interpolates_and_beyond_it_goes_on(num_samples: int, expected_s: float) -> None:
    cost = TableCostModel((1, 3, 4, 16), [[0.0015, 0.0025, 0.002, 0.008]])
    assert cost.batch_s(0, num_samples) == pytest.approx(expected_s)


def test_below_the_smallest_size_it_stays_between_a_share_and_all_of_it() -> None:
    steep = TableCostModel((8, 16), [[0.008, 0.024]])  # the line would cross zero at 4
    assert steep.batch_s(0, 1) == pytest.approx(0.001)
    falling = TableCostModel((8, 16), [[0.008, 0.004]])
    assert falling.batch_s(0, 1) == pytest.approx(0.008)


def test_falling_end_of_the_table_does_not_make_larger_batches_cheaper() -> None:
    cost = TableCostModel((1, 8, 16), [[0.001, 0.009, 0.008]])
    assert cost.batch_s(0, 10_000) == pytest.approx(0.008)


def test_table_of_one_size_is_flat_below_and_proportional_above() -> None:
    cost = TableCostModel((4,), [[0.004]])
    assert [cost.batch_s(0, n) for n in (1, 4, 8)] == pytest.approx([0.004, 0.004, 0.008])


@given(
    rows=st.lists(st.floats(1e-6, 10.0), min_size=3, max_size=3),
    num_samples=st.integers(1, 5000),
)
def test_every_prediction_is_finite_and_positive(rows: list[float], num_samples: int) -> None:
    assert 0.0 < TableCostModel((2, 5, 32), [rows]).batch_s(0, num_samples) < math.inf


def test_batch_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="num_samples is 0"):
        TableCostModel((1,), [[1.0]]).batch_s(0, 0)


@pytest.mark.parametrize(
    ("sizes", "rows", "match"),
    [
        ((), [[]], "batch_sizes"),
        ((0, 1), [[1.0, 1.0]], "batch_sizes"),
        ((2, 2), [[1.0, 1.0]], "batch_sizes"),
        ((1, 2), [], "stage_seconds is empty"),
        ((1, 2), [[1.0]], r"stage_seconds\[0\] has 1 values"),
        ((1,), [[0.0]], r"stage_seconds\[0\] has 0.0"),
        ((1,), [[1.0], [math.nan]], r"stage_seconds\[1\] has nan"),
        ((1,), [[math.inf]], "inf"),
    ],
)
def test_impossible_table_is_refused(sizes: tuple, rows: list, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        TableCostModel(sizes, rows)


def test_correction_follows_a_machine_that_is_slower_than_the_table() -> None:
    cost = TableCostModel((1, 8), [[0.001, 0.008], [0.001, 0.008]])
    for _ in range(100):
        cost.observe(0, 4, elapsed_s=0.008)
    assert cost.correction(0) == pytest.approx(2.0, rel=1e-3)
    assert cost.batch_s(0, 4) == pytest.approx(0.008, rel=1e-3)
    assert cost.table_s(0, 4) == pytest.approx(0.004)
    assert cost.correction(1) == 1.0


@pytest.mark.parametrize(("elapsed_s", "bound"), [(1e6, 4.0), (0.0, 0.25)])
def test_correction_is_bounded(elapsed_s: float, bound: float) -> None:
    cost = TableCostModel((1,), [[0.001]])
    for _ in range(500):
        cost.observe(0, 1, elapsed_s=elapsed_s)
    assert cost.correction(0) == pytest.approx(bound)


def test_accuracy_reports_what_was_predicted_before_the_batch_ran() -> None:
    cost = TableCostModel((1,), [[0.010], [0.030]])
    cost.observe(0, 1, elapsed_s=0.020)
    cost.observe(0, 1, elapsed_s=0.020)
    first, second = cost.accuracy()
    assert first.num_batches == 2
    assert first.predicted_s == pytest.approx(0.010 + 0.011)
    assert first.actual_s == pytest.approx(0.040)
    assert second.num_batches == 0


def test_call_over_several_stages_is_shared_out_by_prediction() -> None:
    cost = TableCostModel((1,), [[0.010], [0.030]])
    cost.observe(0, 1, elapsed_s=0.080, num_stages=2)
    first, second = cost.accuracy()
    assert first.actual_s == pytest.approx(0.020)
    assert second.actual_s == pytest.approx(0.060)


@pytest.mark.parametrize("elapsed_s", [-1.0, math.nan, math.inf])
def test_elapsed_time_that_is_no_time_is_refused(elapsed_s: float) -> None:
    with pytest.raises(ValueError, match="elapsed_s"):
        TableCostModel((1,), [[1.0]]).observe(0, 1, elapsed_s=elapsed_s)


def test_relaxing_forgets_slowness_alone() -> None:
    cost = TableCostModel((1, 2), [[0.01, 0.02]])
    for _ in range(50):
        cost.observe(0, 1, 0.04)
    before = cost.correction(0)
    cost.relax(0)
    assert 1.0 < cost.correction(0) < before
    for _ in range(50):
        cost.observe(0, 1, 0.005)
    fast = cost.correction(0)
    cost.relax(0)
    assert cost.correction(0) == fast < 1.0


def test_one_batch_as_fast_as_ever_ends_most_of_a_slow_moment() -> None:
    cost = TableCostModel((1, 2), [[0.01, 0.02]])
    for _ in range(50):
        cost.observe(0, 1, 0.04)
    cost.observe(0, 1, 0.01)
    assert cost.correction(0) < 2.6
