"""Points of a family that makes pictures; and a calibration that is killed goes on where it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from models.contract import Family, JobState, Knob, LazyRef, Point, Source, Variant, Work
from models.identity import WEIGHTS_FILE
from models.io import ImageIO, ImageRequest
from models.operating_points import TABLE_FILE, read_table
from models.training.agreement import METRIC, agreement
from models.training.calibration import LEDGER_FILE, Ledger, calibrate

_HERE = "tests.unit.models.test_pictures_calibration"


def build(variant: Variant, device: str = "cpu") -> Variant:
    return variant


def work(variant: Variant, request: ImageRequest, point: Point) -> Work:
    return Work({"macs": float(request.width * request.height * int(point["steps"]))}, 1)


class Coarse:
    """Fewer steps leave fewer grey levels. Notes at which points it ran; dies where VIREO_TEST_DIES says."""

    def __init__(self, network: Variant, variant: Variant) -> None:
        self._notes = (variant.weights or Path()) / "notes"

    def forward(self, batch: torch.Tensor, points: Sequence[Point]) -> Mapping[str, torch.Tensor]:
        steps = int(points[0]["steps"])
        if os.environ.get("VIREO_TEST_DIES") == str(steps):
            os.kill(os.getpid(), signal.SIGKILL)
        with self._notes.open("a") as file:
            file.write(f"{steps}\n")
        step = 1 << (4 - steps)
        return {"image": batch // step * step}


class Brightness:
    """A judge that knows its pictures."""

    metric = "brightness"
    data: Mapping[str, Any] = {"rows": "two of them"}
    rows: Sequence[Any] = (np.full((8, 8, 3), 51, np.uint8), np.full((8, 8, 3), 102, np.uint8))

    def __init__(self, variant: Variant) -> None:
        pass

    def score(self, row: int, image: Any) -> float:
        return float(image.mean()) / 255


class Slow:
    """A job: each step makes pictures whiter, up to what the prompt says."""

    def __init__(self, network: Variant, variant: Variant) -> None:
        pass

    def open(self, request: ImageRequest, point: Point, seed: int) -> JobState:
        return JobState(request=request, point=point, seed=seed, kept={"step": 0})

    def remaining(self, state: JobState) -> Mapping[str, int]:
        left = {"denoise": int(state.point["steps"]) - state.kept["step"], "decode": 1 - len(state.cache)}
        return {phase: count for phase, count in left.items() if count}

    def step(self, states: Sequence[JobState]) -> list[Mapping[str, float]]:
        for state in states:
            if "denoise" in self.remaining(state):
                state.kept = {"step": state.kept["step"] + 1}
            else:
                state.cache["pictures"] = None
        return [{} for _ in states]

    def close(self, state: JobState) -> Mapping[str, Any]:
        share = {"grey": state.kept["step"] / 4, "black": 0.0, "white": 1.0}.get(state.request.prompt, 0.0)
        return {"image": np.full((1, 8, 8, 3), share * 255)}


class Whiteness(Brightness):
    """A judge of what jobs make."""

    metric = "whiteness"
    rows = tuple(ImageRequest(width=8, height=8, prompt=prompt) for prompt in ("grey", "black", "white"))


FAMILY = Family(
    name="coarse",
    summary="loses grey levels",
    tasks=("images",),
    shape="unary",
    variants=(
        Variant(
            id="coarse-1",
            summary="one",
            io=ImageIO(takes_picture=True, max_side=32),
            source=Source(licence="Apache-2.0"),
        ),
    ),
    knobs=(Knob(name="steps", default=4, values=(1, 2, 3, 4), summary="Steps.", trades="grey levels for time"),),
    build=LazyRef(f"{_HERE}:build"),
    runner=LazyRef(f"{_HERE}:Coarse"),
    work=LazyRef(f"{_HERE}:work"),
)


@pytest.fixture
def variant(tmp_path: Path) -> Variant:
    (tmp_path / WEIGHTS_FILE).write_bytes(b"weights")
    (tmp_path / "data").mkdir()
    rng = np.random.default_rng(0)
    for number, size in enumerate([(40, 50), (20, 90), (64, 64)]):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(tmp_path / "data" / f"{number}.png")
    return FAMILY.variants[0].with_weights(tmp_path)


def measured(variant: Variant, **options: Any) -> list[int]:
    """Calibrates; the points that were run."""
    assert variant.weights is not None
    notes = variant.weights / "notes"
    notes.unlink(missing_ok=True)
    calibrate(FAMILY, variant, data_dir=variant.weights / "data", **options)
    return sorted({int(line) for line in notes.read_text().split()})


def test_points_without_a_judge_are_as_good_as_they_agree_with_the_dearest(variant: Variant) -> None:
    assert measured(variant) == [1, 2, 3, 4]
    table = read_table(variant)
    assert table.metric == "agreement with the dearest point: PSNR over 50 dB, at most 1"
    assert table.hardware.load is not None
    assert list(table.points) == [f"steps={steps}" for steps in (4, 3, 2, 1)]
    qualities = [point.quality for point in table.points.values() if point.quality is not None]
    assert [quality.n for quality in qualities] == [3] * 4
    assert qualities[0].value == qualities[0].low == 1.0
    assert [quality.value for quality in qualities] == sorted((quality.value for quality in qualities), reverse=True)
    for point in table.points.values():
        assert point.seconds_per_unit["macs"].keys() == {1, 2, 4}


def test_a_family_may_bring_a_judge_and_then_needs_no_pictures(variant: Variant) -> None:
    family = Family(**{**vars(FAMILY), "parts": {"judge": LazyRef(f"{_HERE}:Brightness")}})
    calibrate(family, variant)
    table = read_table(variant)
    assert (table.metric, table.data) == ("brightness", {"rows": "two of them"})
    best = table.points["steps=4"].quality
    assert best is not None
    assert best.value == pytest.approx(0.3)
    with pytest.raises(ValueError, match="coarse-1 needs pictures to calibrate on; pass --data DIR"):
        calibrate(FAMILY, variant)


@pytest.mark.parametrize("is_judged", [True, False])
def test_pictures_made_by_jobs_are_measured_step_by_step_and_judged_if_there_is_a_judge(
    variant: Variant, is_judged: bool
) -> None:
    parts = {"judge": LazyRef(f"{_HERE}:Whiteness")} if is_judged else {}
    family = replace(FAMILY, shape="job", runner=LazyRef(f"{_HERE}:Slow"), parts=parts)
    calibrate(family, variant)
    table = read_table(variant)
    assert table.metric == ("whiteness" if is_judged else METRIC)
    assert sorted(table.points) == [f"steps={steps}" for steps in (1, 2, 3, 4)]
    for steps in (1, 2, 3, 4):
        point = table.points[f"steps={steps}"]
        assert point.seconds_per_unit["macs"].keys() == {1, 2, 4}
        assert point.quality is not None
        assert point.quality.n == (3 if is_judged else 8)
        assert point.quality.value == pytest.approx((steps / 4 + 0 + 1) / 3 if is_judged else 1.0)


def test_agreement_is_a_share_of_the_highest_ratio() -> None:
    black = np.zeros((4, 4, 3), np.uint8)
    assert agreement(black, black) == 1.0
    assert agreement(black, black + 255) == 0.0
    assert agreement(black, black + 8) == pytest.approx(20 * np.log10(255 / 8) / 50)


# -- going on --------------------------------------------------------------------------------------------------------


def test_calibration_that_was_killed_goes_on_with_what_it_had_measured(variant: Variant) -> None:
    assert variant.weights is not None
    folder = variant.weights
    code = (
        f"from pathlib import Path; from {_HERE} import FAMILY, calibrate;"
        f"folder = Path({str(folder)!r});"
        "calibrate(FAMILY, FAMILY.variants[0].with_weights(folder), data_dir=folder / 'data')"
    )
    environment = {**os.environ, "VIREO_TEST_DIES": "2", "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (folder / TABLE_FILE).exists()
    with (folder / LEDGER_FILE).open("ab") as file:
        file.write(b'["steps=3", {"cut of')
    assert measured(variant, is_resumed=True) == [2, 3, 4], "4 is what others are compared with"
    assert len(read_table(variant).points) == 4
    assert not (folder / LEDGER_FILE).exists()


def test_calibration_that_is_not_resumed_begins_anew(variant: Variant, tmp_path: Path) -> None:
    Ledger(tmp_path, {"model": "other"}).keep("steps=1", int, lambda: 1)
    assert measured(variant) == [1, 2, 3, 4]


def test_measurements_of_something_else_are_not_gone_on_with(variant: Variant, tmp_path: Path) -> None:
    Ledger(tmp_path, {"model": "other"}).keep("steps=1", int, lambda: 1)
    with pytest.raises(ValueError, match=r"has measurements of .*other.*leave --resume out"):
        measured(variant, is_resumed=True)


def test_a_measurement_is_made_once_and_comes_back_as_it_was(tmp_path: Path) -> None:
    made: list[str] = []

    def keep(ledger: Ledger) -> Any:
        return ledger.keep("times", dict[int, float], lambda: made.append("x") or {1: 0.25, 16: 0.5})

    ledger = Ledger(tmp_path, {"model": "m"})
    assert keep(ledger) == keep(ledger) == keep(Ledger(tmp_path, {"model": "m"}, is_resumed=True)) == {1: 0.25, 16: 0.5}
    assert made == ["x"]
