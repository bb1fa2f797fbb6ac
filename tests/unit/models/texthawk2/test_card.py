"""Where the reader's card sees its curves lead."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.training.texthawk2.card import at_ten_times, earlier_evaluations
from models.training.texthawk2.synth.scene import SMALLEST_TEXT


def _evaluated(hours: float, wrong: float, **fields: Any) -> dict[str, Any]:
    return {"smallest_text": SMALLEST_TEXT, "hours": hours, "tasks": {"word": {"right": 1 - wrong}}} | fields


def test_an_error_that_falls_as_a_power_of_the_hours_is_drawn_out_to_ten_times_as_many() -> None:
    found = at_ten_times([_evaluated(hours, 0.6 / hours**0.5) for hours in (2.0, 3.0, 7.0)], "word")
    assert found == pytest.approx(1 - 0.6 / 70**0.5)


@pytest.mark.parametrize(
    "evaluations",
    [
        [],
        [_evaluated(2.0, 0.5)],
        [_evaluated(2.0, 0.5), _evaluated(3.0, 0.6)],
        [_evaluated(2.0, 0.5), {**_evaluated(3.0, 0.4), "tasks": {}}],
    ],
    ids=["never", "once", "it rises", "asked once"],
)
def test_without_a_curve_that_falls_nothing_is_said(evaluations: list[dict[str, Any]]) -> None:
    assert at_ten_times(evaluations, "word") is None


def test_evaluations_of_less_training_on_the_same_pictures_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    assert earlier_evaluations(path, 9.0) == []
    oldest, other = _evaluated(2.0, 0.5), _evaluated(3.0, 0.5, smallest_text=SMALLEST_TEXT / 2)
    last = _evaluated(5.0, 0.3)
    path.write_text(json.dumps({**last, "earlier": [oldest, other]}))
    assert earlier_evaluations(path, 9.0) == [oldest, last]
    assert earlier_evaluations(path, 5.0) == [oldest], "the same weights are evaluated again"
    path.write_text('{"seed": 1, "tasks": {}}')
    assert earlier_evaluations(path, 9.0) == [], "a file of before"
