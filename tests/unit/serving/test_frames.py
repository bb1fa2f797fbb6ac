"""A request for one picture goes through few hands: at most 20 frames of ours in 12 files, from socket to model."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_picture_goes_through_few_frames_and_files() -> None:
    """In a process of its own: the replica that it builds sets torch up for itself."""
    command = [sys.executable, "-m", "tests.benchmarks.count_frames"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r"open frames: (\d+) in (\d+) files", done.stdout)
    assert found, done.stdout
    assert all(name in done.stdout for name in ("Endpoint.__call__", "RowEngine.run")), "it did not see the whole way"
    assert int(found[1]) <= 20, done.stdout
    assert int(found[2]) <= 12, done.stdout
