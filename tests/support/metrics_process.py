"""A process that counts something, says so, and waits to be killed. Run with the folder as its argument."""

from __future__ import annotations

import signal
import sys
from pathlib import Path


def main() -> None:
    """Count, print, wait."""
    from serving.telemetry import setup

    tell = setup(Path(sys.argv[1]), "error")
    from serving.domain import Surface
    from serving.stores.breaker import BreakerState
    from serving.telemetry.events import BreakerChanged, CallFinished, CallStarted, WorkPriced

    surface = Surface.HTTP_CLASSIFY
    for _ in range(3):
        tell(CallStarted(surface))
    tell(CallFinished(surface=surface, model="m", tenant="t", outcome="ok", seconds=0.003))
    tell(BreakerChanged(BreakerState.OPEN))
    tell(WorkPriced("m", "step", predicted_s=2.0, actual_s=3.0, correction=1.5))
    print("ready", flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
