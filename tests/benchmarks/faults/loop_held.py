"""For how long each body of ``json_bodies`` holds the event loop of a gateway, seen from inside the loop.

``json_bodies`` asks through HAProxy, which has the same bytes to carry; here nothing else is in the way.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.faults.harness import Figures, Start
from tests.benchmarks.faults.json_bodies import bodies
from tests.support.system import MODEL

TITLE = "event loop held by one JSON body"
_PROBE = Path(__file__).parents[1] / "apps" / "loop_probe.py"
_TIMEOUT_S = 120.0


def measure(start: Start) -> Figures:
    """The longest hold of each body, or of each group of them."""
    return {
        f"{name}: loop held, ms": max(
            _held_ms(start.root, path.replace(MODEL, "fake-nano"), kind, body) for path, kind, body in group
        )
        for name, group in bodies()
    }


def _held_ms(root: Path, path: str, kind: str, body: bytes) -> float:
    environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'proto'}", "OMP_NUM_THREADS": "1"}
    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        command = [sys.executable, str(_PROBE), file.name, path, kind]
        done = subprocess.run(
            command, cwd=root, env=environment, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S
        )
    return float(json.loads(done.stdout.splitlines()[-1])["held_ms"])
