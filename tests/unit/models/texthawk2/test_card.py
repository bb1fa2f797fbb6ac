"""What the model card says of the training's curves."""

from __future__ import annotations

import pytest

from models.training.texthawk2.card import at_ten_times


def _log(wrong_at: dict[int, float]) -> list[dict[str, float]]:
    return [{"step": step, "exact_word": 1 - wrong} for step, wrong in wrong_at.items()]


def test_an_error_that_falls_as_a_power_of_the_steps_is_drawn_out_to_ten_times_as_many() -> None:
    log = _log({step: 40.0 / step**0.5 for step in range(2000, 10_001, 100)})
    assert at_ten_times(log, "word") == pytest.approx(1 - 40.0 / 100_000**0.5)


def test_an_error_that_rises_is_not_drawn_out() -> None:
    log = _log({step: 0.2 + step / 1e6 for step in range(2000, 10_001, 100)})
    assert at_ten_times(log, "word") == pytest.approx(0.793, abs=0.002)


@pytest.mark.parametrize("log", [[], _log({100: 0.5, 200: 0.4}), [{"step": 100, "loss": 1.0}]])
def test_without_a_curve_nothing_is_said(log: list[dict[str, float]]) -> None:
    assert at_ten_times(log, "word") is None


def test_steps_of_earlier_runs_count() -> None:
    """The first run's first third is not looked at; its steps are."""
    first = _log(dict.fromkeys(range(100, 5001, 100), 0.9))
    second = _log({step: 40.0 / (5000 + step) ** 0.5 for step in range(100, 10_001, 100)})
    assert at_ten_times([*first, *second], "word") == pytest.approx(1 - 40.0 / 150_000**0.5)
