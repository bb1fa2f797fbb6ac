from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedulers.cost import PREDICTED, CostModel, Price, measured_stages


def test_measured_sizes_are_returned_as_measured() -> None:
    cost = measured_stages((1, 4, 16), [[0.001, 0.002, 0.008], [0.003, 0.003, 0.004]])
    assert [cost.batch_s(0, n) for n in (1, 4, 16)] == [0.001, 0.002, 0.008]
    assert cost.num_priced == 2


@pytest.mark.parametrize(("rows", "expected_s"), [(2, 0.002), (8, 0.004), (32, 0.016), (2000, 1.0)])
def test_between_sizes_it_interpolates_and_beyond_it_goes_on(rows: int, expected_s: float) -> None:
    cost = measured_stages((1, 3, 4, 16), [[0.0015, 0.0025, 0.002, 0.008]])
    assert cost.batch_s(0, rows) == pytest.approx(expected_s)


def test_below_the_smallest_size_it_stays_between_a_share_and_all_of_it() -> None:
    steep = measured_stages((8, 16), [[0.008, 0.024]])  # the line would cross zero at 4
    assert steep.batch_s(0, 1) == pytest.approx(0.001)
    falling = measured_stages((8, 16), [[0.008, 0.004]])
    assert falling.batch_s(0, 1) == pytest.approx(0.008)


def test_falling_end_of_the_table_does_not_make_larger_batches_cheaper() -> None:
    cost = measured_stages((1, 8, 16), [[0.001, 0.009, 0.008]])
    assert cost.batch_s(0, 10_000) == pytest.approx(0.008)


def test_table_of_one_size_is_flat_below_and_proportional_above() -> None:
    cost = measured_stages((4,), [[0.004]])
    assert [cost.batch_s(0, n) for n in (1, 4, 8)] == pytest.approx([0.004, 0.004, 0.008])


@given(
    times=st.lists(st.floats(1e-6, 10.0), min_size=3, max_size=3),
    rows=st.integers(1, 5000),
)
def test_every_prediction_is_finite_and_positive(times: list[float], rows: int) -> None:
    assert 0.0 < measured_stages((2, 5, 32), [times]).batch_s(0, rows) < math.inf


def test_batch_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="0 rows"):
        measured_stages((1,), [[1.0]]).batch_s(0, 0)


@pytest.mark.parametrize(
    ("sizes", "rows", "match"),
    [
        ((), [[]], "ascending"),
        ((0, 1), [[1.0, 1.0]], "ascending"),
        ((4, 2), [[1.0, 1.0]], "ascending"),
        ((1, 2), [], "stage_seconds is empty"),
        ((1, 2), [[1.0]], r"stage_seconds\[0\] has 1 values"),
        ((1,), [[0.0]], r"stage_seconds\[0\] is \[0.0\]"),
        ((1,), [[1.0], [math.nan]], r"stage_seconds\[1\] is \[nan\]"),
        ((1,), [[math.inf]], "inf"),
    ],
)
def test_impossible_table_is_refused(sizes: tuple, rows: list, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        measured_stages(sizes, rows)


def test_correction_follows_a_machine_that_is_slower_than_the_table() -> None:
    cost = measured_stages((1, 8), [[0.001, 0.008], [0.001, 0.008]])
    for _ in range(100):
        cost.observe(0, 4, elapsed_s=0.008)
    assert cost.correction(0) == pytest.approx(2.0, rel=1e-3)
    assert cost.batch_s(0, 4) == pytest.approx(0.008, rel=1e-3)
    assert cost.correction(1) == 1.0


@pytest.mark.parametrize(("elapsed_s", "bound"), [(1e6, 4.0), (0.0, 0.25)])
def test_correction_is_bounded(elapsed_s: float, bound: float) -> None:
    cost = measured_stages((1,), [[0.001]])
    for _ in range(500):
        cost.observe(0, 1, elapsed_s=elapsed_s)
    assert cost.correction(0) == pytest.approx(bound)


def test_accuracy_reports_what_was_predicted_before_the_batch_ran() -> None:
    cost = measured_stages((1,), [[0.010], [0.030]])
    cost.observe(0, 1, elapsed_s=0.020)
    cost.observe(0, 1, elapsed_s=0.020)
    first, second = cost.accuracy()
    assert first.num_slices == 2
    assert first.predicted_s == pytest.approx(0.010 + 0.011)
    assert first.actual_s == pytest.approx(0.040)
    assert second.num_slices == 0


@pytest.mark.parametrize("elapsed_s", [-1.0, math.nan, math.inf])
def test_elapsed_time_that_is_no_time_is_refused(elapsed_s: float) -> None:
    with pytest.raises(ValueError, match="elapsed_s"):
        measured_stages((1,), [[1.0]]).observe(0, 1, elapsed_s=elapsed_s)


def test_relaxing_forgets_slowness_alone() -> None:
    cost = measured_stages((1, 2), [[0.01, 0.02]])
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
    cost = measured_stages((1, 2), [[0.01, 0.02]])
    for _ in range(50):
        cost.observe(0, 1, 0.04)
    cost.observe(0, 1, 0.01)
    assert cost.correction(0) < 2.6


# -- work in named units -----------------------------------------------------------------------------------------------

TWO_UNITS = Price(
    seconds={"macs": {1: 1e-9, 4: 0.5e-9}, "pixels": {1: 1e-6}}, row={"macs": 1e6, "pixels": 1e3}
)  # alone 1 ms and 1 ms; four together 2 ms and 4 ms


def test_price_adds_up_its_units_each_interpolated_by_rows() -> None:
    cost = CostModel({"draw": TWO_UNITS}, watts=3.0)
    assert cost.batch_s("draw", 1) == pytest.approx(2e-3)
    assert cost.batch_s("draw", 4) == pytest.approx(6e-3)
    assert cost.batch_s("draw", 2) == pytest.approx(1e-3 + 1e-3 / 3 + 2e-3)
    assert cost.watts == 3.0


def test_work_of_a_batch_counts_in_usual_rows() -> None:
    cost = CostModel({"draw": TWO_UNITS})
    small, large = {"macs": 0.5e6, "pixels": 0.5e3}, {"macs": 3e6, "pixels": 3e3}
    work = cost.in_rows("draw", small) + cost.in_rows("draw", large)
    assert work == pytest.approx(3.5)
    assert cost.batch_s("draw", 2, work) == pytest.approx(cost.batch_s("draw", 2) * 3.5 / 2)
    cost.observe("draw", 2, 2 * cost.batch_s("draw", 2, work), work)
    assert cost.correction("draw") == pytest.approx(1.1)


@pytest.mark.parametrize(
    ("seconds", "row", "match"),
    [
        ({}, {}, "names no unit"),
        ({"macs": {}}, {"macs": 1.0}, "ascending"),
        ({"macs": {1: -1.0}}, {"macs": 1.0}, "has -1.0"),
        ({"macs": {1: math.inf}}, {"macs": 1.0}, "has inf"),
        ({"macs": {1: 1.0}}, {"macs": math.nan}, "has nan"),
        ({"macs": {1: 1.0}}, {"pixels": 1.0}, "costs nothing"),
    ],
)
def test_impossible_price_is_refused(seconds: dict, row: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Price(seconds=seconds, row=row)


@pytest.mark.parametrize("watts", [0.0, math.nan, math.inf])
def test_power_that_is_none_is_refused(watts: float) -> None:
    with pytest.raises(ValueError, match="watts"):
        CostModel(watts=watts)


# -- what nobody measured ----------------------------------------------------------------------------------------------


def test_prediction_from_elsewhere_holds_until_something_is_observed() -> None:
    cost = CostModel()
    assert cost.batch_s("a", 1, 0.2) == 0.2
    assert cost.batch_s("a", 2, 0.7) == pytest.approx(0.7)
    assert not cost.knows("a")


def test_first_observations_replace_a_guess_however_wrong_it_was() -> None:
    cost = CostModel()
    cost.observe("a", 1, 50.0, 0.1)
    assert cost.batch_s("a", 1, 0.1) == pytest.approx(50.0)
    cost.observe("a", 1, 0.001, 0.1)
    assert cost.batch_s("a", 1, 0.1) < 27.0
    assert cost.batch_s("b", 1, 0.1) == 0.1


def test_guess_follows_a_change_and_large_slices_count_for_more() -> None:
    cost = CostModel()
    for _ in range(50):
        cost.observe("a", 1, 1.0, 1.0)
    for _ in range(50):
        cost.observe("a", 1, 3.0, 1.0)
    assert cost.correction("a") == pytest.approx(3.0, rel=0.02)
    cost.observe("a", 1, 0.0001, 0.001)
    assert cost.correction("a") == pytest.approx(3.0, rel=0.02)


def test_what_says_nothing_teaches_nothing() -> None:
    cost = CostModel()
    cost.observe("a", 1, 1.0, 0.0)
    cost.observe("a", 1, 0.0, 1.0)
    assert not cost.knows("a")


def test_memory_of_kinds_is_bounded_and_priced_ones_stay() -> None:
    cost = CostModel({0: PREDICTED})
    for kind in range(10_000):
        cost.observe(kind, 1, 2.0, 1.0)
    assert len(cost.accuracy()) == 4097
    assert cost.knows(0)
    assert cost.correction(9_999) == 2.0
    assert not cost.knows(1)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_law_of_a_machine_is_found_by_size(share: float) -> None:
    """Twice the prediction for small steps, three times for large ones, and ``share`` of it for each companion."""
    chance, cost, scales = Random(1), CostModel(), {128: 2.0, 384: 3.0}
    for _ in range(300):
        tokens, rows = chance.choice((128, 384)), chance.choice((1, 2, 4))
        cost.observe((tokens, rows), rows, scales[tokens] * 0.1 * (1 + share * (rows - 1)), 0.1 * rows)
    for tokens, rows in ((128, 1), (384, 2), (128, 4)):
        expected_s = scales[tokens] * 0.1 * (1 + share * (rows - 1))
        assert cost.batch_s((tokens, rows), rows, 0.1 * rows) == pytest.approx(expected_s)
