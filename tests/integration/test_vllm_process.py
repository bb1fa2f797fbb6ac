"""vLLM in a process of its own, as in a replica: what it leaves behind when that is killed, and its metrics."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.support.chat_models import make_model_folder
from tests.support.source_tree import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    folder, run_dir, metrics = (tmp_path_factory.mktemp(name) for name in ("model", "run", "metrics"))
    make_model_folder(folder)
    started = subprocess.Popen(
        [sys.executable, "-m", "tests.support.chat_engine_process", str(folder), str(run_dir)],
        cwd=ROOT,
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(metrics), "PYTHONPATH": _path()},
        stdout=subprocess.PIPE,
        text=True,
    )
    yield started
    started.kill()
    started.communicate()


@pytest.fixture(scope="module")
def report(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith('{"start_s"'):
            found: dict[str, Any] = json.loads(line)
            return found
    pytest.fail("the process ended before it answered")


def _path() -> str:
    return os.pathsep.join((str(ROOT), str(ROOT / "proto")))


def test_vllm_metrics_stand_beside_ours(report: dict[str, Any]) -> None:
    assert report["num_tokens"] == 5
    lines = report["exposition"].splitlines()
    values = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line[0] != "#"}
    ours = {name: value for name, value in values.items() if name.startswith("vireo_replica_retries_total")}
    # vLLM unregisters its own collectors when it starts, and nobody else's.
    assert sorted(ours.values()) == [1.0, 1.0]
    generated = [value for name, value in values.items() if name.startswith("vllm:generation_tokens_total")]
    assert generated == [5.0]
    labelled = next(name for name in values if name.startswith("vllm:generation_tokens_total"))
    assert 'model_name="texthawk2-test"' in labelled
    for family in ("num_requests_running", "kv_cache_usage_perc", "time_to_first_token_seconds_bucket", "mm_cache"):
        assert any(name.startswith(f"vllm:{family}") for name in values), family


def test_engine_process_dies_with_a_killed_replica(process: subprocess.Popen[str], report: dict[str, Any]) -> None:
    (pid,) = report["engine_pids"]
    child = psutil.Process(pid)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    gone, alive = psutil.wait_procs([child], timeout=20)
    assert (gone, alive) == ([child], [])
