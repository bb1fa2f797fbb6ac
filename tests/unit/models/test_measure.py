"""Cost tables: shape and interpolation. No timing is asserted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.contract import Family, Knob, LazyRef, Point, Variant, Work
from models.families.dyn_perceiver.load import load_model
from models.families.dyn_perceiver.runner import DynPerceiverRunner
from models.identity import WEIGHTS_FILE
from models.operating_points import read_table
from models.pictures import SquarePicture
from models.registry import find
from models.training.calibration import calibrate, hardware
from models.training.classify.measure import StageCost, expected_batch_ms, interpolate, stage_costs
from models.training.classify.pictures import folder_sets

FAMILY, NANO = find("dyn-perceiver-nano")
COSTS: StageCost = {
    "batch_sizes": [1, 4, 8],
    "stages": [[2.0, 5.0, 9.0], [4.0, 10.0, 18.0]],
    "errors": [[0.1, 0.1, 0.1], [0.2, 0.2, 0.2]],
}


@pytest.mark.parametrize(
    ("samples", "expected"), [(0, 0.0), (0.5, 1.0), (1, 2.0), (2, 3.0), (4, 5.0), (8, 9.0), (16, 18.0)]
)
def test_costs_between_below_and_beyond_measured_sizes(samples: float, expected: float) -> None:
    assert interpolate(COSTS, 0, samples) == pytest.approx(expected)


def test_a_batch_shrinks_at_every_exit() -> None:
    assert expected_batch_ms(COSTS, [0.0, 1.0], 8) == 27.0
    assert expected_batch_ms(COSTS, [0.5, 0.5], 8) == 9.0 + 10.0
    assert expected_batch_ms(COSTS, [1.0, 0.0], 8) == 9.0
    assert expected_batch_ms(COSTS, [0.75, 0.25], 1) == 2.0 + 0.25 * 4.0


def test_measured_table_has_a_positive_number_for_every_stage_and_size() -> None:
    runner = DynPerceiverRunner(load_model(NANO, random_weights=True), NANO)
    costs = stage_costs(runner, 32, runner.device, batch_sizes=(1, 3), repeats=2)
    assert costs["batch_sizes"] == [1, 3]
    assert [len(stage) for stage in costs["stages"]] == [2, 2, 2, 2]
    assert all(ms > 0 for stage in costs["stages"] for ms in stage)
    assert hardware(runner.device).device == "cpu"


def test_calibrating_writes_a_table_that_reads_back(tmp_path: Path) -> None:
    assert NANO.weights is not None
    (tmp_path / WEIGHTS_FILE).write_bytes((NANO.weights / WEIGHTS_FILE).read_bytes())
    variant = NANO.with_weights(tmp_path)
    phases: set[str] = set()
    path = calibrate(
        FAMILY,
        variant,
        repeats=1,
        target_percent=(40, 5),
        watts=8.0,
        on_progress=lambda what, done, total: phases.add(what),
    )
    table = read_table(variant)
    assert path.parent == tmp_path
    first, full = "exit_1=0,exit_2=0,exit_3=0", "exit_1=2,exit_2=2,exit_3=2"
    (cheap,) = table.points.keys() - {first, full}  # 40%; 5% is below exit 1
    assert table.points[cheap].figures["macs_fraction"] < 0.5
    assert table.energy.watts == 8.0
    assert len(table.slices) == 4
    assert phases == {"timing stages", "searching thresholds"}


def test_published_variant_needs_weights_and_pictures(tmp_path: Path) -> None:
    family, variant = find("dyn-perceiver-regnety-800mf")
    with pytest.raises(ValueError, match="vireo convert"):
        calibrate(family, variant)
    (tmp_path / WEIGHTS_FILE).write_bytes(b"")
    with pytest.raises(ValueError, match="--data DIR"):
        calibrate(family, variant.with_weights(tmp_path))


class Echo:
    """A unary family that reads its answer from a pixel, wrongly where its point says so."""

    def forward(self, batch: torch.Tensor, points: list[Point]) -> dict[str, torch.Tensor]:
        answers = batch[:, 16, 16, 0].long() // 20 % 10 * torch.tensor([point["depth"] == 2 for point in points])
        return {"probabilities": torch.nn.functional.one_hot(answers, 10).float()}


def test_network_without_exits_is_calibrated_along_its_settings(tmp_path: Path) -> None:
    family = Family(
        name="echo",
        summary="reads a pixel",
        tasks=("classify",),
        shape="unary",
        variants=(NANO,),
        prepare=LazyRef("models.pictures:SquarePicture"),
        build=LazyRef(f"{__name__}:build_echo"),
        runner=LazyRef(f"{__name__}:run_echo"),
        work=LazyRef(f"{__name__}:echo_work"),
        knobs=(Knob(name="depth", default=2, values=(1, 2), summary="Blocks.", trades="accuracy"),),
    )
    (tmp_path / WEIGHTS_FILE).write_bytes(b"")
    variant = NANO.with_weights(tmp_path)
    calibrate(family, variant, data_dir=labelled_folder(tmp_path / "data", 10, 4), repeats=1)
    table = read_table(variant)
    good, poor = table.points.values()
    assert list(table.points) == ["depth=2", "depth=1"]
    assert (good.settings, good.figures["macs_fraction"]) == ({"depth": 2}, 1.0)
    assert (poor.settings, poor.figures["macs_fraction"]) == ({"depth": 1}, 0.5)
    assert good.quality is not None
    assert poor.quality is not None
    assert good.quality.value == 1.0 > good.quality.low > poor.quality.high
    assert (good.quality.n, poor.quality.value < 0.5) == (20, True)
    assert [one.units for one in table.slices] == [{"macs": 20.0}]


def build_echo(variant: Variant, device: str) -> None:
    return None


def run_echo(network: None, variant: Variant) -> Echo:
    return Echo()


def echo_work(variant: Variant, request: object, point: Point) -> Work:
    return Work({"macs": 10.0 * float(point["depth"])}, bytes_held=1)


def labelled_folder(root: Path, classes: int, per_class: int) -> Path:
    for label in range(classes):
        folder = root / f"class{label:02d}"
        folder.mkdir(parents=True)
        for i in range(per_class):
            Image.fromarray(np.full((9, 7, 3), 20 * label, np.uint8)).save(folder / f"{i}.png")
    return root


def test_folder_is_split_in_halves_with_labels_in_sorted_order(tmp_path: Path) -> None:
    sets = folder_sets(labelled_folder(tmp_path, 10, 3), NANO, SquarePicture(NANO))
    search, judge = sets.search, sets.judge["mixed"]
    assert (len(search), len(judge)) == (15, 15)
    for part in (search, judge):
        assert part.images.shape == (15, 32, 32, 3)
        np.testing.assert_array_equal(part.images[:, 16, 16, 0] // 20, part.labels)
    assert np.bincount(np.concatenate([search.labels, judge.labels])).tolist() == [3] * 10


def test_folder_with_other_classes_or_broken_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="4 class folders; dyn-perceiver-nano needs 10"):
        folder_sets(labelled_folder(tmp_path / "four", 4, 1), NANO, SquarePicture(NANO))
    root = labelled_folder(tmp_path / "broken", 10, 1)
    (root / "class03" / "0.png").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"class03.*not a readable picture"):
        folder_sets(root, NANO, SquarePicture(NANO))
