"""The committed checkpoint and its table, as users get them."""

from __future__ import annotations

import json
import math
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from models.families.dyn_perceiver.flops import exit_flops
from models.families.dyn_perceiver.load import build_meta, load_model
from models.families.dyn_perceiver.runner import DynPerceiverRunner
from models.identity import checkpoint_sha256
from models.methods.early_exit.calibration import ALWAYS, estimate
from models.operating_points import Point, read_table
from models.pictures import SquarePicture
from models.registry import find
from models.training.classify.pictures import ExitOutputs, Pictures, exit_outputs
from models.training.dyn_perceiver.evaluation import held_out_sets

pytestmark = pytest.mark.usefixtures("one_thread")
NANO = find("dyn-perceiver-nano")[1]


@cache
def outputs(name: str) -> ExitOutputs:
    return exit_outputs(DynPerceiverRunner(load_model(NANO), NANO), held_out_sets("test")[name])


def points() -> list[Point]:
    return list(read_table(NANO).points.values())


def thresholds(point: Point) -> tuple[float, ...]:
    return (*(float(point.settings[f"exit_{number}"]) for number in (1, 2, 3)), ALWAYS)


def test_last_exit_gets_97_percent_of_clean_held_out_digits() -> None:
    assert outputs("clean").accuracy[-1] >= 0.97


def test_half_of_the_flops_cost_at_most_half_a_point() -> None:
    flops = exit_flops(build_meta(NANO))
    cheap = [p for p in points() if p.figures["macs_fraction"] <= 0.5]
    for name, field in (("clean", "accuracy_clean"), ("mixed", "accuracy")):
        out = outputs(name)
        measured = [estimate(out.confidences, out.correct, flops, thresholds(p)) for p in cheap]
        assert max(m.accuracy for m in measured) >= out.accuracy[-1] - 0.005, field


def test_the_table_repeats_what_the_weights_do() -> None:
    flops, out = exit_flops(build_meta(NANO)), outputs("mixed")
    for point in points():
        measured = estimate(out.confidences, out.correct, flops, thresholds(point))
        assert point.quality is not None
        # Another processor may round a few confidences to the other side of a threshold: a few samples of 2,912.
        assert point.quality.value == pytest.approx(measured.accuracy, abs=0.002)
        assert point.figures["macs_fraction"] == pytest.approx(measured.expected_cost / flops[-1], abs=0.002)
        assert point.figures["exit_shares"] == pytest.approx(measured.exit_shares, abs=0.004)


def test_the_table_belongs_to_the_weights() -> None:
    table = read_table(NANO)
    assert NANO.weights is not None
    assert table.checkpoint_sha256 == checkpoint_sha256(NANO.weights)
    assert [one.units["macs"] for one in table.slices] == exit_flops(build_meta(NANO))


def test_every_point_is_complete_and_consistent() -> None:
    table, family = read_table(NANO), find("dyn-perceiver-nano")[0]
    macs = [one.units["macs"] for one in table.slices]
    assert len(table.points) >= 6
    assert {"exit_1=2,exit_2=2,exit_3=2", "exit_1=0,exit_2=0,exit_3=0"} <= table.points.keys()
    for point in table.points.values():
        assert family.check_point(point.settings) == point.settings
        shares = point.figures["exit_shares"]
        assert sum(shares) == pytest.approx(1.0, abs=1e-5)
        expected = math.fsum(share * cost for share, cost in zip(shares, macs, strict=True))
        assert point.figures["expected_macs"] == pytest.approx(expected, rel=1e-5)
        assert point.quality is not None
        assert point.quality.n == len(held_out_sets("test")["clean"])  # copies of a digit say nothing new of it


def test_table_of_other_weights_is_refused(tmp_path: Path) -> None:
    assert NANO.weights is not None
    shutil.copy(NANO.weights / "operating_points.json", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"other weights.*vireo calibrate dyn-perceiver-nano"):
        read_table(NANO.with_weights(tmp_path))


def test_model_without_a_table_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"vireo calibrate dyn-perceiver-nano"):
        read_table(NANO.with_weights(tmp_path))
    with pytest.raises(ValueError, match=r"vireo convert"):
        read_table(find("dyn-perceiver-regnety-800mf")[1])


def test_checkpoint_is_small_and_complete() -> None:
    assert NANO.weights is not None
    assert (NANO.weights / "model.safetensors").stat().st_size <= 4_000_000
    assert tuple(json.loads((NANO.weights / "labels.json").read_text())) == NANO.io.labels
    for name in ("README.md", "config.json", "training_log.json", "curves.png", "operating_points.png"):
        assert (NANO.weights / name).is_file()


@pytest.mark.parametrize("inverted", [False, True], ids=["light on dark", "dark on light"])
def test_typeset_digits_of_any_size_and_polarity_are_read(inverted: bool) -> None:
    from PIL import Image, ImageDraw, ImageFont

    ink, ground = ((20, 20, 60), (250, 240, 220)) if inverted else ((255, 255, 255), (0, 0, 0))
    images = []
    for digit, size in zip(range(10), [40, 64, 90, 120, 200, 33, 48, 300, 150, 75], strict=True):
        picture = Image.new("RGB", (size, size), ground)
        font = ImageFont.load_default(int(size * 0.8))
        left, top, right, bottom = font.getbbox(str(digit))
        ImageDraw.Draw(picture).text(
            ((size - right - left) / 2, (size - bottom - top) / 2), str(digit), fill=ink, font=font
        )
        images.append(SquarePicture(NANO)(np.array(picture)))
    read = exit_outputs(DynPerceiverRunner(load_model(NANO), NANO), Pictures(np.stack(images), np.arange(10)))
    assert read.correct[-1].sum() >= 9, read.probabilities[-1].argmax(-1)


def test_held_out_sets_are_always_the_same_and_share_no_digit_with_training() -> None:
    from models.training.dyn_perceiver.digits import handwritten

    first, second = held_out_sets("test"), held_out_sets("test")
    assert all(np.array_equal(first[name].images, second[name].images) for name in first)
    splits = handwritten(0)
    parts = [{row.numpy().tobytes() for row in p.ink} for p in (splits.train, splits.calibration, splits.test)]
    assert len(splits.train) + len(splits.calibration) + len(splits.test) == 1797
    assert not parts[0] & parts[2]
    assert not parts[0] & parts[1]
    assert not parts[1] & parts[2]
