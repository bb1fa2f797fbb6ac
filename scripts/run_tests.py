"""Run all tests in two lanes at once: those of systems and their parts, which mostly wait for them, and all others.

The second lane yields to the first (nice), so that a system is hardly slower than on a machine of its own. It computes
on one thread: where two share a core with another lane, each small operation waits for the one that is not running.
Each line of output begins with its lane; the exit code is that of the worse one. Ctrl-C and SIGTERM reach both.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

SYSTEMS = ("tests/deploy", "tests/integration", "tests/e2e")
PYTEST = (sys.executable, "-u", "-m", "pytest", "-q")
LANES = {
    "systems": (*PYTEST, *SYSTEMS),
    "others": (
        "env",
        "OMP_NUM_THREADS=1",
        "nice",
        "-n",
        "10",
        *PYTEST,
        "tests",
        *(f"--ignore={folder}" for folder in SYSTEMS),
    ),
}


def start(command: tuple[str, ...]) -> subprocess.Popen[bytes]:
    """Start a lane."""
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def follow(lane: str, process: subprocess.Popen[bytes]) -> int:
    """Show what a lane prints until it ends, and return its exit code."""
    assert process.stdout is not None
    for line in process.stdout:
        sys.stdout.buffer.write(f"{lane} ".encode() + line)
        sys.stdout.buffer.flush()
    return abs(process.wait())


def interrupt(lanes: Iterable[subprocess.Popen[bytes]]) -> None:
    """Let lanes end in order, as Ctrl-C does."""
    for lane in lanes:
        lane.send_signal(signal.SIGINT)


def main() -> int:
    """Run both and return the exit code."""
    lanes = {lane: start(command) for lane, command in LANES.items()}
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the lanes, which end in order and are waited for
    signal.signal(signal.SIGTERM, lambda *_: interrupt(lanes.values()))
    with ThreadPoolExecutor(len(lanes)) as pool:
        return max(pool.map(follow, lanes, lanes.values()))


if __name__ == "__main__":
    sys.exit(main())
