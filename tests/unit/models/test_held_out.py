"""Runs that prices are not fitted to, and how well they are predicted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.operating_points import Prediction, Seconds, Table
from models.training.classify.measure import Pass, StageCost, held_out_of
from models.training.held_out import Predicted, batch_s, prediction, rounds
from models.training.sweep import Run, fit_runs
from models.training.sweep import held_out_of as held_out_jobs
from models.training.texthawk2 import timing
from schedulers.cost import Price


def test_errors_are_relative_to_what_a_run_took() -> None:
    runs = [Predicted(predicted, 2.0) for predicted in (2.0, 2.2, 1.0)]
    assert prediction(runs) == Prediction(runs=3, median_error=0.1, p95_error=0.5)
    assert prediction([]) is None


@given(st.integers(1, 40))
def test_one_round_of_three_is_held_out_and_at_least_one(repeats: int) -> None:
    held_out = rounds(repeats)
    assert held_out.count(False) == repeats
    assert held_out.count(True) == max(1, repeats // 2)
    assert not held_out[0]


@given(st.integers(1, 4), st.floats(1.0, 9.0), st.floats(0.1, 2.0), st.floats(0.1, 2.0))
def test_a_batch_between_measured_ones_costs_what_a_scheduler_says(
    rows: int, work: float, alone_s: float, share_s: float
) -> None:
    times = {1: alone_s, 4: share_s}
    prices = {"macs": {size: Seconds(seconds=seconds) for size, seconds in times.items()}}
    price = Price(seconds={"macs": times}, row={"macs": work})
    assert batch_s(prices, {"macs": work, "slices": 1.0}, rows) == pytest.approx(price.of_rows(rows))


def run(rows: int, macs: float, steps_s: float, *, other_s: float = 0.0, is_held_out: bool = False) -> Run:
    return Run(rows, {"macs": macs, "slices": 2.0, "pixels": 10.0}, steps_s, other_s, is_held_out)


def test_nothing_is_fitted_to_runs_that_are_held_out() -> None:
    kept = [run(1, macs, 3.0 * macs + 4.0) for macs in (1.0, 5.0)]
    spare = [run(1, 3.0, 26.0, is_held_out=True), run(1, 1.0, 7.0, is_held_out=True)]
    prices = fit_runs([*kept, *spare])
    assert prices == fit_runs(kept)
    assert {unit: times[1].seconds for unit, times in prices.items()} == pytest.approx({"macs": 3.0, "slices": 2.0})
    held_out = held_out_jobs([*kept, *spare], prices)
    assert [one.actual_s for one in held_out] == [26.0, 7.0]
    assert [one.predicted_s for one in held_out] == pytest.approx([13.0, 7.0])


def test_what_explains_nothing_at_some_number_of_rows_is_free_there() -> None:
    """The planner reads the price of the next smaller number of rows where a number has none."""
    runs = [run(1, macs, macs + 4.0) for macs in (1.0, 5.0)] + [run(2, macs, 2 * macs) for macs in (1.0, 5.0)]
    prices = fit_runs(runs)
    assert prices["slices"][1].seconds == pytest.approx(2.0)
    assert prices["slices"][2] == Seconds(seconds=0.0)


def test_stages_of_a_batch_are_predicted_one_by_one() -> None:
    costs: StageCost = {"batch_sizes": [1, 4], "stages": [[2.0, 5.0], [4.0, 10.0]], "errors": []}
    found = held_out_of(costs, [Pass(2, (3.0, 8.0))])
    assert [one.predicted_s for one in found] == pytest.approx([0.003, 0.006])
    assert [one.actual_s for one in found] == pytest.approx([0.003, 0.008])


def test_tables_of_before_say_nothing_of_predictions(table: Table) -> None:
    assert table.prediction is None
    told = msgspec.structs.replace(table, prediction=Prediction(runs=4, median_error=0.05, p95_error=0.2))
    assert msgspec.json.decode(msgspec.json.encode(told), type=Table) == told


@pytest.fixture
def table() -> Table:
    content: dict[str, Any] = {
        "model": "m", "checkpoint_sha256": "0" * 64, "created": "", "commit": None,
        "hardware": {"cpu": "x", "device": "cpu", "threads": 1}, "energy": {"source": "estimate", "watts": 6.0},
        "metric": "", "data": {}, "points": {"default": {"settings": {}, "seconds_per_unit": {}}},
    }  # fmt: skip
    return msgspec.convert(content, Table)


# -- answers of a chat -----------------------------------------------------------------------------------------------

PRICES = {"output_tokens": 0.02, "image_tokens": 0.001, "prompt_tokens": 0.0002, "token_steps": 1e-6}


def answer_units(one: timing.Question) -> Mapping[str, float]:
    shown = 16.0 * (one.tiles + (one.tiles > 1))
    prompt = shown + one.words
    return {
        "output_tokens": one.answer, "image_tokens": shown, "prompt_tokens": prompt,
        "token_steps": one.answer * (prompt + one.answer / 2),
    }  # fmt: skip


def test_questions_that_are_timed_tell_the_units_of_an_answer_apart() -> None:
    asked = [(one, False) for one in timing.QUESTIONS] + [(one, True) for one in timing.HELD_OUT]
    runs = [
        timing.Run(1, dict(units), sum(price * units[unit] for unit, price in PRICES.items()), is_held_out)
        for one, is_held_out in asked
        for units in [answer_units(one)]
    ]
    prices = timing.fit_answers(runs)
    assert {unit: times[1].seconds for unit, times in prices.items()} == pytest.approx(PRICES, rel=1e-3)
    found = prediction(timing.held_out_of(runs, prices))
    assert found is not None
    assert (found.runs, found.p95_error) == (len(timing.HELD_OUT), pytest.approx(0.0, abs=1e-3))
