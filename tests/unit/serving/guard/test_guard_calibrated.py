"""``guard.json`` beside weights: absent, of these weights, or refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models.identity import WEIGHTS_FILE, checkpoint_sha256
from schedulers.guard.calibration import FILE_NAME, Group, GuardCalibration
from schedulers.guard.text import TextModel
from serving.errors import ConfigError
from serving.guard.calibrated import read_calibration


def test_calibration_is_read_only_beside_the_weights_that_it_is_of(tmp_path: Path) -> None:
    (tmp_path / WEIGHTS_FILE).write_bytes(b"weights")
    assert read_calibration(tmp_path) is None
    written = GuardCalibration(
        model="reader",
        checkpoint_sha256=checkpoint_sha256(tmp_path),
        num_benign=1,
        text=TextModel(weights=(0.0,) * 16),
        groups={"all": Group(num=1, p95_tokens=1)},
    )
    (tmp_path / FILE_NAME).write_text(json.dumps(written.to_plain()), encoding="utf-8")
    assert read_calibration(tmp_path) == written
    assert read_calibration(tmp_path, written.checkpoint_sha256) == written
    with pytest.raises(ConfigError, match="of other weights"):
        read_calibration(tmp_path, "1" * 64)
    (tmp_path / WEIGHTS_FILE).write_bytes(b"others")
    with pytest.raises(ConfigError, match="of other weights"):
        read_calibration(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"format": 99}'])
def test_file_that_is_none_is_refused_with_its_name(tmp_path: Path, text: str) -> None:
    (tmp_path / WEIGHTS_FILE).write_bytes(b"weights")
    (tmp_path / FILE_NAME).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=FILE_NAME):
        read_calibration(tmp_path)
