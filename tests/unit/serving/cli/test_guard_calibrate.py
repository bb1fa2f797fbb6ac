"""``vireo guard calibrate``: the file it writes, and what it says where it cannot."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from schedulers.guard.calibration import GuardCalibration
from schedulers.guard.text import Asked
from serving.cli import guard_calibrate
from serving.cli.app import build
from serving.guard.fit import Benign

MODEL = "texthawk2-nano"
SPECIAL = {680, 681, 682, 683, 684, 685}


def benign(count: int) -> list[Benign]:
    rng = np.random.default_rng(1)
    lengths = np.clip(rng.lognormal(math.log(10), 0.3, count), 1, 60).astype(int)
    return [
        Benign(asked=Asked("Read the word.", num_images=1), token_ids=rng.integers(10, 600, length).tolist())
        for length in lengths
    ]


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    path = tmp_path / "requests.jsonl"
    path.write_text(json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Hello."}]}) + "\n")
    return path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(build(), ["guard", "calibrate", *arguments])


def answering(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    async def answers(*_: Any) -> list[Benign]:
        return benign(count)

    monkeypatch.setattr(guard_calibrate, "_answers", answers)


def test_it_writes_what_the_guard_reads_and_where_it_came_from(
    monkeypatch: pytest.MonkeyPatch, requests: Path, tmp_path: Path
) -> None:
    answering(monkeypatch, 1000)
    done = run(MODEL, "--requests", str(requests), "--out", str(tmp_path), "--quiet")
    assert done.exit_code == 0, done.output
    plain = json.loads((tmp_path / "guard.json").read_text())
    calibration = GuardCalibration.from_plain(plain)
    assert (calibration.model, calibration.num_benign) == (MODEL, 1000)
    assert calibration.special_ids == SPECIAL
    assert plain["provenance"]["requests"] == requests.name
    assert len(plain["provenance"]["requests_sha256"]) == 64
    assert "1000 answers, which is few" in done.output


def test_too_few_are_refused_and_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch, requests: Path, tmp_path: Path
) -> None:
    answering(monkeypatch, 100)
    done = run(MODEL, "--requests", str(requests), "--out", str(tmp_path))
    assert done.exit_code != 0
    assert "record at least 750" in done.output
    assert not (tmp_path / "guard.json").exists()


def test_a_model_that_does_not_chat_is_refused(requests: Path) -> None:
    done = run("dyn-perceiver-nano", "--requests", str(requests))
    assert done.exit_code != 0
    assert "dyn-perceiver-nano" in done.output


def test_a_body_that_the_server_would_refuse_is_named_by_its_line(requests: Path, tmp_path: Path) -> None:
    """The nano model itself answers the first line."""
    requests.write_text(requests.read_text() + json.dumps({"model": MODEL, "messages": []}) + "\n")
    done = run(MODEL, "--requests", str(requests), "--out", str(tmp_path), "--quiet")
    assert done.exit_code != 0
    assert "line 2: messages is empty" in done.output.replace("\n", " ")
