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

from models.registry import families, find
from schedulers.operating_points import Budget, Choice, Infeasible, choose
from serving.config import ModelSettings, ResolvedModel, UnaryOptions, resolve_model
from serving.errors import ConfigError
from serving.operating_points import FILE_NAME, load_table, table_for
from serving.replica.staged.setup import build_driver
from serving.telemetry.events import ignore

NANO = "dyn-perceiver-nano"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = find(NANO)[1].weights
    assert source is not None
    for name in (FILE_NAME, "model.safetensors"):
        shutil.copy(source / name, tmp_path / name)
    return tmp_path


def test_every_checkpoint_that_ships_has_a_table_that_loads() -> None:
    shipped = [variant for variant in families()["dyn-perceiver"].variants if variant.weights is not None]
    assert shipped
    for variant in shipped:
        table = load_table(variant.id, variant.weights)
        assert table.num_exits == variant.io.num_exits
        assert table.points


@pytest.fixture(scope="module")
def never_measured() -> ResolvedModel[UnaryOptions]:
    settings = ModelSettings(id="timm:test_resnet.r160_in1k", options={"random_weights": True, "max_batch": 2})
    model: ResolvedModel[UnaryOptions] = resolve_model(settings)
    return model


def test_nobody_is_refused_for_the_guesses_about_a_model_that_was_never_measured(
    never_measured: ResolvedModel[UnaryOptions],
) -> None:
    table = table_for(never_measured)
    assert not table.is_calibrated
    assert [point.name for point in table.points] == ["default"]
    assert isinstance(choose(table, Budget(latency_s=1e-6), 0.0), Choice)
    assert isinstance(choose(table, Budget(quality_floor=0.01), 0.0), Infeasible)


async def test_its_replica_measures_it_and_answers(never_measured: ResolvedModel[UnaryOptions]) -> None:
    driver = build_driver(never_measured, ignore)
    guessed_s = table_for(never_measured).cost_model().batch_s(0, 2)
    assert 0.0 < driver.predict(0, 1, 2) != guessed_s
    driver.start()
    side = never_measured.variant.io.input_size
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    answers = await asyncio.gather(*(driver.submit(picture, deadline_s=math.inf, thresholds=(0.0,)) for _ in range(3)))
    await driver.stop()
    assert {answer.exit_index for answer in answers} == {0}
    for answer in answers:
        assert answer.outputs["probabilities"].shape == (1000,)
        assert float(answer.outputs["probabilities"].sum()) == pytest.approx(1.0, abs=1e-4)


def test_model_without_weights_says_how_to_get_them() -> None:
    with pytest.raises(ConfigError, match="vireo convert"):
        load_table("dyn-perceiver-regnety-800mf", None)


def test_missing_table_names_the_command(folder: Path) -> None:
    (folder / FILE_NAME).unlink()
    with pytest.raises(ConfigError, match=f"vireo calibrate {NANO}"):
        load_table(NANO, folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"7", b"{}", b'{"format": 99}', b"\xff\xfe"])
def test_damaged_table_is_a_config_error(folder: Path, content: bytes) -> None:
    (folder / FILE_NAME).write_bytes(content)
    with pytest.raises(ConfigError, match="vireo calibrate"):
        load_table(NANO, folder)


def _drop(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda table: table.pop(name)


@pytest.mark.parametrize("name", ["model", "checkpoint_sha256", "exit_flops", "stage_cost_ms", "energy", "points"])
def test_table_that_lacks_a_field_is_a_config_error(folder: Path, name: str) -> None:
    _rewrite(folder, _drop(name))
    with pytest.raises(ConfigError, match="vireo calibrate"):
        load_table(NANO, folder)


def test_table_of_another_model_is_refused_by_name(folder: Path) -> None:
    _rewrite(folder, lambda table: table.update(model="vdit-nano"))
    with pytest.raises(ConfigError, match=f"vdit-nano, not {NANO}"):
        load_table(NANO, folder)


def test_table_measured_with_other_weights_is_refused(folder: Path) -> None:
    """It would promise costs and exits of a model that is not there, and name the wrong one in cache keys."""
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ConfigError, match="other weights"):
        load_table(NANO, folder)


def test_table_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="no weights"):
        load_table(NANO, folder)


def _rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / FILE_NAME
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))
