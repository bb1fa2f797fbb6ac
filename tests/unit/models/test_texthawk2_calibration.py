"""Points of a chat: tiles of a picture and cap on its answer, each with its measured quality, and what tokens cost."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.io import knobs_of
from models.operating_points import read_table
from models.registry import find
from models.training.calibration import calibrate
from models.training.texthawk2 import calibrate as calibrated
from models.training.texthawk2 import timing
from models.training.texthawk2.synth.example import Example
from serving.operating_points import planned_points
from serving.tasks.chat.points import Measured

FAMILY, NANO = find("texthawk2-nano")


def pictures(task: str, count: int) -> list[Example]:
    """A small one, and one of many tiles."""
    images = [Image.fromarray(np.full((60, side, 3), 90, np.uint8)) for side in (60, 300)]
    return [Example(image=image, task=task, turns=(("How many?", "3"),)) for image in images]


def test_each_number_of_tiles_and_each_cap_has_its_quality_and_units_their_prices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert NANO.weights is not None
    shutil.copytree(NANO.weights, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(calibrated, "held_out", pictures)
    monkeypatch.setattr(calibrated, "_tasks", lambda folder: ["count"])
    monkeypatch.setattr(calibrated, "CAPS", (1, 4))
    monkeypatch.setattr(timing, "QUESTIONS", tuple(timing.Question(*one) for one in ((1, 8, 1), (4, 8, 3), (1, 32, 3))))
    monkeypatch.setattr(timing, "HELD_OUT", (timing.Question(2, 8, 2),))
    monkeypatch.setattr(timing, "TOGETHER", 2)
    variant = NANO.with_weights(tmp_path)
    calibrate(FAMILY, variant, count=2, repeats=1)
    table = read_table(variant)
    assert {point.settings["max_tokens"] for point in table.points.values()} == {1, 4}
    tiles = {int(point.settings["max_tiles"]) for point in table.points.values()}
    assert len(tiles) > 1
    measured = Measured(planned_points(table))
    assert set(measured.tiles_of(knobs_of(FAMILY, NANO), {})) == tiles, "the planner chooses among them"
    for point in table.points.values():
        assert point.quality is not None
        assert point.quality.n == 2
        cap = int(point.settings["max_tokens"])
        assert point.figures["output_tokens"] <= cap, "an answer is cut off there"
        assert measured.quality(int(point.settings["max_tiles"]), cap) is not None
    assert table.prediction is not None
    assert table.prediction.runs >= 2 * 3


def test_tasks_are_those_that_a_checkpoint_was_evaluated_on_and_that_still_exist(tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text('{"tasks": {"word": {}, "count": {}, "a task of before": {}}}')
    assert calibrated._tasks(tmp_path) == ["count", "word"]
    assert "interview" not in calibrated._tasks(tmp_path / "none")
