"""What every test gets: a quiet environment, seeded generators, and no task of ours that outlives a test."""

from __future__ import annotations

import asyncio
import inspect
import os
import random
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

os.environ.update(
    {
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        "MPLBACKEND": "Agg",
    }
)
# How long an example takes says how busy the machine is, and nothing of the code.
settings.register_profile("vireo", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("vireo")
_ROOT = Path(__file__).parent.parent
_OURS = (str(_ROOT / "serving"), str(_ROOT / "loadtest"))


@pytest.fixture(scope="session")
def _run_dirs() -> Iterator[Path]:
    """Short, because sockets lie below it: their paths may have 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="vt", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def _own_run_dir(_run_dirs: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that has run on this machine left its secret in the default folder; no test may find it there."""
    monkeypatch.setenv("VIREO_RUN_DIR", str(_run_dirs / f"{abs(hash(request.node.nodeid)):x}"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Networks this small only wait for their threads, for many times as long where others are at work."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator of its own for each test, always with the same seed."""
    return np.random.default_rng(20)


@pytest.fixture(autouse=True)
def _seed_global_generators() -> None:
    random.seed(20)
    np.random.seed(20)


@pytest.fixture(autouse=True)
def _check_tasks(request: pytest.FixtureRequest) -> None:
    """Set up first and torn down last, so that a test's own fixtures have stopped what they started."""
    if inspect.iscoroutinefunction(getattr(request.node, "obj", None)):
        request.getfixturevalue("no_task_is_left")


@pytest.fixture
async def no_task_is_left() -> AsyncIterator[None]:
    """Fail a test that leaves a task of ours behind. Those of libraries are not ours to judge."""
    yield
    for _ in range(5):
        await asyncio.sleep(0)
    left = [task for task in asyncio.all_tasks() if _is_ours(task)]
    assert not left, f"{len(left)} tasks outlive the test: {left}"


def _is_ours(task: asyncio.Task[object]) -> bool:
    code = getattr(task.get_coro(), "cr_code", None)
    return code is not None and code.co_filename.startswith(_OURS)
