"""What a served model's work was predicted to take, and took, as ``vireo models show`` tells it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from serving.cli import live_costs, run_state
from serving.cli.live_costs import LiveCost, lines_of

ROOT = Path(__file__).parents[4]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Of a system in which two processes each predicted 2 s for what took 3."""
    for _ in range(2):
        command = [sys.executable, "-m", "tests.support.metrics_process", str(tmp_path / "metrics")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.kill()
    return tmp_path


def serve(monkeypatch: pytest.MonkeyPatch, run_dir: Path, *models: str) -> None:
    state = SimpleNamespace(
        is_running=lambda: True, models=models, run_dir=str(run_dir), http_url="http://127.0.0.1:8000"
    )
    monkeypatch.setattr(run_state, "started", lambda: [state])


def test_seconds_of_all_processes_are_added_up(run_dir: Path) -> None:
    (one,) = live_costs.live_costs({"m"}, run_dir / "metrics")
    assert (one.kind, one.predicted_s, one.actual_s) == ("step", 4.0, 6.0)
    assert live_costs.live_costs({"other"}, run_dir / "metrics") == []


def test_they_are_told_where_the_model_is_served(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, run_dir, "m", "quiet")
    assert lines_of({"m"})[0].startswith("at http://127.0.0.1:8000")
    assert "4 s predicted, 6 s taken (1.50 times that)" in lines_of({"m"})[1]
    assert lines_of({"quiet"}) == ["at http://127.0.0.1:8000: nothing was predicted yet"]


def test_a_correction_is_told_where_something_is_learnt() -> None:
    assert "multiplied by 1.50" in live_costs._in_words(LiveCost("step", 2.0, 3.0, 1.5))
    assert "multiplied" not in live_costs._in_words(LiveCost("job", 2.0, 3.0, None))


def test_it_is_said_that_a_model_is_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, tmp_path, "other")
    (line,) = lines_of({"m"})
    assert line.startswith("not served on this machine now")
