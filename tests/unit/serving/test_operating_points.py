"""The operating-point table beside a checkpoint: read, or refused with the command that makes one."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from models.contract import Family, Knob, LazyRef, Point, Variant, Work
from models.io import ImageIO, ImageRequest
from models.operating_points import TABLE_FILE, Seconds, share_quality, write_table
from models.registry import find
from schedulers.cost import measured_stages
from schedulers.plan import Budget, Load, Plan, Refusal, plan
from schedulers.policies.exits import NEVER_THRESHOLD
from serving.config import ModelSettings, ResolvedModel, UnaryOptions, resolve_model
from serving.errors import ConfigError
from serving.operating_points import (
    dearest_seconds,
    load_table,
    parted,
    planned_points,
    points_of,
    row_work,
    sizes_of_rows,
    step_cost,
    usual_work,
)
from serving.replica.staged.setup import build_driver, start_engine
from serving.telemetry.events import ignore

NANO = "dyn-perceiver-nano"
FULL = "exit_1=2,exit_2=2,exit_3=2"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = find(NANO)[1].weights
    assert source is not None
    for name in (TABLE_FILE, "model.safetensors"):
        shutil.copy(source / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("model", [NANO, "vdit-nano"])
def test_every_checkpoint_that_ships_has_a_table_that_loads(model: str) -> None:
    family, variant = find(model)
    table = load_table(variant)
    names = [knob.name for knob in family.knobs if knob.is_axis]
    assert len(table.slices) == (variant.io.num_exits if family.shape == "staged" else 0)
    for point in table.points.values():
        family.check_point(point.settings)
        assert set(names) <= point.settings.keys()
        assert point.seconds_per_unit
        assert point.quality is not None
    lows = [point.quality for point in planned_points(table)]
    assert lows == sorted(lows, key=lambda low: -(low or 0.0))


def test_a_row_alone_is_what_somebody_waits_for_and_its_share_of_a_batch_is_charged() -> None:
    table = load_table(find(NANO)[1])
    for point in planned_points(table):
        times = table.points[point.name].seconds_per_unit["macs"]
        assert point.cost.latency_s == {"macs": times[1].seconds}
        assert point.cost.busy_s == {"macs": times[16].seconds}
        assert point.cost.busy_s["macs"] < point.cost.latency_s["macs"]


@pytest.mark.parametrize("model", ["dyn-perceiver-nano", "dit-moe-nano", "vdit-nano"])
def test_usual_request_takes_no_more_than_points_that_are_picked(model: str) -> None:
    family, variant = find(model)
    work, points = usual_work(family, variant), planned_points(load_table(variant))
    alone = [one for point in points if isinstance(one := plan([point], work, Budget(), Load()), Plan)]
    budgets = [
        Budget(quality_floor=one.point.quality, latency_s=latency_s)
        for one in alone
        for latency_s in (None, one.latency_s)
    ]
    picked = [plan(points, work, budget, Load()) for budget in budgets]
    picked_s = max(one.busy_s for one in picked if isinstance(one, Plan))
    all_s = max(point.cost.busy(work(point.settings)) for point in points)
    assert dearest_seconds(points, work) == pytest.approx(picked_s)
    assert picked_s < all_s


def test_thresholds_are_the_schedulers_and_the_rest_is_the_networks() -> None:
    settings = {"exit_1": 0.5, "exit_2": 2.0, "depth": 3}
    assert parted(settings, 4) == ((0.5, NEVER_THRESHOLD, NEVER_THRESHOLD, 0.0), {"depth": 3})
    assert parted({}, 1) == ((0.0,), {})


@pytest.fixture(scope="module")
def never_measured() -> ResolvedModel[UnaryOptions]:
    settings = ModelSettings(id="timm:test_resnet.r160_in1k", options={"random_weights": True, "max_batch": 2})
    model: ResolvedModel[UnaryOptions] = resolve_model(settings)
    return model


def test_nobody_is_refused_for_the_guesses_about_a_model_that_was_never_measured(
    never_measured: ResolvedModel[UnaryOptions],
) -> None:
    points = points_of(never_measured)
    assert not points.is_calibrated
    assert points.names == ("default",)
    made = plan(points.points, points.work, Budget(latency_s=1e-6), Load())
    assert isinstance(made, Plan)
    assert made.energy_j > 0.0
    assert isinstance(plan(points.points, points.work, Budget(quality_floor=0.01), Load()), Refusal)


async def test_its_replica_measures_it_and_answers(never_measured: ResolvedModel[UnaryOptions]) -> None:
    engine = start_engine(never_measured)
    driver = build_driver(never_measured, engine, engine.measured, ignore)
    driver.start()
    side = never_measured.variant.io.input_size
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    answers = await asyncio.gather(*(driver.submit(picture, deadline_s=math.inf, thresholds=(0.0,)) for _ in range(3)))
    await driver.stop()
    engine.close()
    assert {answer.exit_index for answer in answers} == {0}
    for answer in answers:
        assert answer.outputs["probabilities"].shape == (1000,)
        assert float(answer.outputs["probabilities"].sum()) == pytest.approx(1.0, abs=1e-4)


def test_model_without_weights_says_how_to_get_them() -> None:
    with pytest.raises(ConfigError, match="vireo convert"):
        load_table(find("dyn-perceiver-regnety-800mf")[1])


def test_missing_table_names_the_command(folder: Path) -> None:
    (folder / TABLE_FILE).unlink()
    with pytest.raises(ConfigError, match=f"vireo calibrate {NANO}"):
        load_table(find(NANO)[1].with_weights(folder))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"7", b"{}", b'{"version": 99}', b"\xff\xfe"])
def test_damaged_table_is_a_config_error(folder: Path, content: bytes) -> None:
    (folder / TABLE_FILE).write_bytes(content)
    with pytest.raises(ConfigError, match="vireo calibrate"):
        load_table(find(NANO)[1].with_weights(folder))


def _drop(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda table: table.pop(name)


@pytest.mark.parametrize("name", ["model", "checkpoint_sha256", "commit", "hardware", "energy", "points"])
def test_table_that_lacks_a_field_is_a_config_error(folder: Path, name: str) -> None:
    _rewrite(folder, _drop(name))
    with pytest.raises(ConfigError, match="vireo calibrate"):
        load_table(find(NANO)[1].with_weights(folder))


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("version",), 2, "version"),
        (("model",), 7, "model"),
        (("checkpoint_sha256",), "short", "checkpoint_sha256"),
        (("energy", "watts"), 0.0, "watts"),
        (("energy", "watts"), "10", "watts"),
        (("energy", "source"), None, "source"),
        (("hardware", "threads"), 0, "threads"),
        (("made_by",), "somebody", "made_by"),
        (("points",), {}, "points"),
        (("points",), [], "points"),
        (("points", FULL, "settings", "exit_1"), 1.0, "exit_1=1,"),
        (("points", FULL, "settings", "exit_1"), [], "exit_1|settings"),
        (("points", FULL, "quality", "low"), 0.99, "outside"),
        (("points", FULL, "quality", "high"), 1.5, "high"),
        (("points", FULL, "quality", "n"), 0, "n"),
        (("points", FULL, "seconds_per_unit", "hours"), {"1": {"seconds": 1.0, "error": None}}, "hours"),
        (("points", FULL, "seconds_per_unit", "macs"), {}, "macs|seconds_per_unit"),
        (("points", FULL, "seconds_per_unit", "macs"), {"0": {"seconds": 1.0}}, "seconds_per_unit"),
        (("points", FULL, "seconds_per_unit", "macs", "1", "seconds"), -1.0, "seconds"),
        (("points", FULL, "seconds_per_unit", "macs", "1", "seconds"), math.inf, "malformed|seconds"),
        (("slices", 1, "seconds"), {"1": {"seconds": 1.0}}, "batch sizes"),
        (("slices", 1, "units"), {"hours": 1.0}, "hours"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_damaged_table_is_refused_by_the_name_of_the_field(
    folder: Path, path: tuple[Any, ...], value: object, named: str
) -> None:
    def change(table: Any) -> None:
        for step in path[:-1]:
            table = table[step]
        table[path[-1]] = value

    _rewrite(folder, change)
    with pytest.raises(ConfigError, match=rf"cannot be used \(.*({named})"):
        load_table(find(NANO)[1].with_weights(folder))


def test_number_that_is_too_large_for_a_float_is_refused(folder: Path) -> None:
    path = folder / TABLE_FILE
    path.write_text(path.read_text().replace('"watts": 6.0', '"watts": 1e999'))
    with pytest.raises(ConfigError, match="cannot be used"):
        load_table(find(NANO)[1].with_weights(folder))


def test_table_comes_back_as_it_was_written(folder: Path) -> None:
    variant = find(NANO)[1].with_weights(folder)
    table = load_table(variant)
    assert write_table(table, folder) == folder / TABLE_FILE
    assert load_table(variant) == table
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", TABLE_FILE]  # no draft


@pytest.mark.parametrize(("value", "n"), [(0.0, 1), (1.0, 1), (0.5, 10), (0.94, 50), (0.98, 50), (1.0, 10_000)])
def test_interval_of_a_share_holds_it_and_narrows_with_more_samples(value: float, n: int) -> None:
    few, many = share_quality(value, n), share_quality(value, 10 * n)
    assert 0.0 <= few.low <= value <= few.high <= 1.0
    assert few.low <= many.low
    assert many.high <= few.high


def test_lucky_sample_does_not_win() -> None:
    assert share_quality(1.0, 5).low < share_quality(0.9, 500).low
    assert share_quality(0.94, 50).low == pytest.approx(0.837776, abs=1e-4)  # Wilson's, by hand


def test_table_of_another_model_is_refused_by_name(folder: Path) -> None:
    _rewrite(folder, lambda table: table.update(model="vdit-nano"))
    with pytest.raises(ConfigError, match=f"vdit-nano, not {NANO}"):
        load_table(find(NANO)[1].with_weights(folder))


def test_table_measured_with_other_weights_is_refused(folder: Path) -> None:
    """It would promise costs and exits of a model that is not there, and name the wrong one in cache keys."""
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ConfigError, match="other weights"):
        load_table(find(NANO)[1].with_weights(folder))


def test_table_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="no weights"):
        load_table(find(NANO)[1].with_weights(folder))


def _rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / TABLE_FILE
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


def pixels(variant: Variant, request: ImageRequest, point: Point) -> Work:
    return Work({"macs": 10.0 * int(point["steps"]) * request.width * request.height}, bytes_held=0)


def test_row_is_as_large_as_its_work_beside_that_of_the_largest_at_the_defaults() -> None:
    io = ImageIO(takes_picture=True, max_side=64)
    variant = Variant(id="toy-steps-1", summary="", io=io)
    knob = Knob(name="steps", default=2, low=1, high=8, is_integer=True, summary="", trades="a for b")
    here = LazyRef("tests.unit.serving.test_operating_points:pixels")
    family = Family(
        name="toy-steps", summary="", tasks=("images",), shape="unary", variants=(variant,), work=here, knobs=(knob,)
    )
    work = row_work(family, variant)
    cost = measured_stages((1, 8), [[0.1, 0.4]], row=work({"steps": 2}))
    size_of = sizes_of_rows(family, io, work, cost)
    rows = [np.zeros((side, 2 * side, 3), np.uint8) for side in (32, 16)]
    assert [size_of(row, {}) for row in rows] == pytest.approx([0.5, 0.125])
    assert size_of({"picture": rows[1]}, {"steps": 8}) == pytest.approx(0.5)
    assert sizes_of_rows(family, find(NANO)[1].io, work, cost)(rows[0], {}) == 1.0


@pytest.mark.parametrize(
    ("times", "has_decode", "one_s", "two_s"),
    [
        ({}, False, 3.0, 6.0),
        ({1: 1.0}, False, 3.0, 6.0),
        (
            {1: 2.0, 2: 1.5},
            False,
            4.0,
            6.0,
        ),  # charged is a share of a batch: alone, a step takes longer
        ({1: 2.0, 2: 1.5}, True, 2.0, 3.0),  # half of the charge is the decode's
    ],
)
def test_steps_are_predicted_from_what_their_jobs_are_charged(
    tmp_path: Path, times: dict[int, float], has_decode: bool, one_s: float, two_s: float
) -> None:
    """Two jobs that are charged 3 s a step each."""
    family, variant = find("vdit-nano")
    assert variant.weights is not None
    table = load_table(variant)
    name, best = next(iter(table.points.items()))
    seconds = {"macs": {rows: Seconds(seconds=time) for rows, time in times.items()}} if times else {}
    if has_decode:
        units = usual_work(family, variant)(best.settings)
        seconds["pixels"] = {
            rows: Seconds(seconds=time * units["macs"] / units["pixels"]) for rows, time in times.items()
        }
    shutil.copytree(variant.weights, tmp_path, dirs_exist_ok=True)
    write_table(replace(table, points={name: replace(best, seconds_per_unit=seconds)}), tmp_path)
    cost = step_cost(family, variant.with_weights(tmp_path), watts=7.0)
    assert cost.batch_s((64, 1), 1, 3.0) == pytest.approx(one_s)
    assert cost.batch_s((128, 2), 2, 6.0) == pytest.approx(two_s)
    assert cost.watts == 7.0
    without = Variant(id="toy-1", summary="", io=None)
    assert step_cost(family, without, 7.0).batch_s("any", 2, 6.0) == pytest.approx(6.0)
