"""What our engine asks of vLLM's worker, through its ``worker_extension_cls`` and ``collective_rpc``."""

from __future__ import annotations

import os
import select
import signal
import threading
from typing import Any


class WorkerExtension:
    """Mixed into vLLM's worker class. Names are prefixed, since they share a namespace with the worker's own."""

    def vireo_die_with(self: Any, pid: int) -> bool:
        """Kill this process once process ``pid`` has ended, however it ended. vLLM itself stays behind.

        Returns False where the platform cannot watch processes.
        """
        try:
            watched = os.pidfd_open(pid)
        except ProcessLookupError:
            os.kill(os.getpid(), signal.SIGKILL)
            return True
        except OSError:
            return False
        threading.Thread(target=_kill_after, args=(watched,), name="vireo-watch-parent", daemon=True).start()
        return True

    def vireo_encoder_seconds(self: Any) -> float:
        """Seconds spent in vision tower and connector since the start; on a GPU, those until the work was queued."""
        return float(self.get_model().encoder_seconds)


def _kill_after(watched: int) -> None:
    poll = select.poll()
    poll.register(watched, select.POLLIN)
    while not poll.poll():
        pass
    os.kill(os.getpid(), signal.SIGKILL)
