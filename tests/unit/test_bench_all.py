"""A benchmark counts only if nobody else worked on the machine meanwhile."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks import bench_all
from tests.benchmarks.bench_all import Run, Watch, names, one, own_s, table

_SPIN = "import time; end = time.process_time() + 1.0\nwhile time.process_time() < end: pass"


def test_what_a_child_and_its_child_did_is_our_own() -> None:
    before_s = own_s()
    inner = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {_SPIN!r}])"
    subprocess.run([sys.executable, "-c", inner], check=True)
    assert own_s() - before_s >= 0.9


def test_what_others_do_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.0, 100.0])
    monkeypatch.setattr(bench_all, "busy_s", lambda: next(seconds))
    with Watch() as watch:
        pass
    assert watch.mean > 1.0


@pytest.mark.parametrize(
    ("foreign", "worst", "problem", "verdict"),
    [
        (0.02, 0.3, "", "counts"),
        (0.2, 0.3, "", "void: disturbed"),
        (0.02, 0.9, "", "void: disturbed"),
        (0.0, 0.0, "failed with 1", "failed with 1"),
    ],
)
def test_a_run_counts_if_it_ended_and_was_alone(foreign: float, worst: float, problem: str, verdict: str) -> None:
    run = Run(name="moe", took_s=1.0, foreign=foreign, worst=worst, problem=problem)
    assert run.verdict == verdict
    assert verdict in table([run])


def test_results_of_a_run_that_failed_are_not_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_all, "DRAFTS", tmp_path / "drafts")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1))
    assert one("moe", is_quick=True, results=tmp_path / "results").verdict == "failed with 1"
    assert (tmp_path / "drafts" / "moe" / "moe.md").is_file()
    assert not (tmp_path / "results").exists()


def test_every_benchmark_takes_the_options_that_it_is_run_with() -> None:
    root = Path(bench_all.__file__).parent
    for name in names():
        source = (root / f"bench_{name}.py").read_text()
        assert "parser_of(" in source, name
