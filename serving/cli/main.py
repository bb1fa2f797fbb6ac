"""The entry point of the console script, which imports everything else itself: Ctrl-C ends it well from the first."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Run the command line. While modules are imported nothing has begun that an interrupt must put in order, and once
    the command is over nothing is left of it; between, commands are told by ``KeyboardInterrupt``."""
    is_heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not so below nohup, for instance
    if is_heard:
        signal.signal(signal.SIGINT, _end_at_once)
    from serving.cli.app import build

    command = build()
    if is_heard:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        command(prog_name="vireo")
    finally:
        if is_heard:
            signal.signal(signal.SIGINT, _end_at_once)


def _end_at_once(number: int, frame: FrameType | None) -> None:
    sys.stderr.write("vireo: stopped\n")
    sys.stderr.flush()
    os._exit(128 + number)
