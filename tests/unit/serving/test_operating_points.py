"""The operating-point table beside a checkpoint: read, or refused with the command that makes one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.registry import families, find
from serving.errors import ConfigError
from serving.operating_points import FILE_NAME, load_table

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
