"""The script for a GPU runs as far as a CPU can take it, on a machine with torch and little else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks import bench_gpu_check
from tests.benchmarks.bench_gpu_check import aims, carried_out

ROOT = Path(__file__).resolve().parents[2]
_BARE = """
import sys
class Bare:
    missing = {"ray", "vllm", "grpc", "redis", "pydantic", "msgspec", "diffusers", "transformers", "timm"}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.missing:
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Bare())
"""


def test_every_part_that_is_quick_runs_without_ray_and_vllm_and_writes_its_results(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(_BARE)
    command = [sys.executable, "-m", "tests.benchmarks.bench_gpu_check", "--device", "cpu", "--out", str(tmp_path)]
    command += [f"--only={part}" for part in ("kernels", "steps", "exits", "experts", "training")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    parts = json.loads((tmp_path / "gpu-check.json").read_text())["parts"]
    assert all(part["rows"] and not part["problem"] for part in parts.values())
    assert parts["training"]["rows"] == [{"left out": "No module named 'transformers'"}]
    assert {row["kernel"] for row in parts["kernels"]["rows"]} == {"attention", "block mass"}
    assert "times as fast as the loop" in (tmp_path / "gpu-check.md").read_text()


def test_a_part_that_takes_too_long_is_stopped_and_the_next_one_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bench_gpu_check, "SHARES", {"kernels": 1e-9, "exits": 1.0})
    done = carried_out(["kernels", "exits"], "cpu", 120.0, tmp_path)
    assert done["kernels"]["problem"].startswith("stopped after")
    assert done["exits"]["rows"]


def test_the_worst_of_a_shape_stands_beside_its_aim() -> None:
    rows = [
        {"mask": "tile 2:6", "side": "ours", "speedup": speedup, "tokens": tokens}
        for tokens, speedup in ((28800, 1.9), (86400, 1.6))
    ]
    assert aims(rows)[0] == ["tile 2:6, times as fast as dense", ">= 1.7", 1.6]
    assert aims(rows)[1][2] is None
