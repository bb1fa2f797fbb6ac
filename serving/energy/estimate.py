"""The declared estimate, where there is no counter: CPU seconds times the power that a busy core is said to take."""

from __future__ import annotations

from collections.abc import Callable

from serving.energy.meter import ESTIMATE, Reading


class EstimateMeter:
    """``seconds``: of the threads of a replica and its processes, or, for a model on another device, of its busy
    time. What runs while no request does is idle, as with any counter."""

    source = ESTIMATE
    own_idle = 1.0

    def __init__(self, seconds: Callable[[], float], watts: float) -> None:
        self._seconds = seconds
        self._watts = watts

    def read(self) -> Reading:
        """See ``Meter``. Always there."""
        return Reading(self._seconds() * self._watts)
