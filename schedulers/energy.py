"""Whose joules the growth of an energy counter is: idle, the requests', or somebody else's on a shared counter.

Windows of a second or more are closed one after the other, from one reading of the counter to the next:

    metered = idle + elsewhere + active       idle: watts that were measured while nothing ran, times the window
    rate    = active / work                   joules of a second of work, over the latest windows; where watts are
                                              declared, they count as a tenth of a second of such work

Work is counted in the busy seconds that requests are told (a batch's seconds, split by the units of its rows), so a
request's joules are its seconds times the rate, whoever came first. Most requests end before their window does. They
are told joules at the rate of the latest closed windows, and what was said and what was measured are compared when
the window closes: the difference is carried into the rate of the windows that follow, so that totals add up:

    metered = idle + elsewhere + said + carried       exactly, after each window
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_KEPT = 0.7
"""Of the sums of earlier windows, at each that follows: a rate is of the latest three or so."""
_KEPT_IDLE = 0.9
_DECLARED_S = 0.1
"""Seconds of work that declared watts weigh as much as. What else a process does varies from window to window by more
joules than a few milliseconds of work take."""
_MOST_CORRECTION = 2.0
"""A rate is told at half to twice of what was measured, however much is carried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Between two readings of a counter: so many seconds and joules, in which requests had ``work_s`` busy seconds.

    ``is_idle``: nothing ran on what the counter measures. ``own_active`` and ``own_idle``: parts of a shared counter
    that are this replica's.

    Raises: ValueError: a number is negative or not finite, or a window of no length.
    """

    seconds: float
    joules: float
    work_s: float
    is_idle: bool = False
    own_active: float = 1.0
    own_idle: float = 1.0

    def __post_init__(self) -> None:
        for name in ("seconds", "joules", "work_s", "own_active", "own_idle"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; need a finite number >= 0")
        if not self.seconds:
            raise ValueError("seconds is 0; a window has a length")


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Where the joules of one window went; the last three add up to the first. ``active_j``: the requests'."""

    metered_j: float
    idle_j: float
    elsewhere_j: float
    active_j: float


class WorkClock:
    """Busy seconds of slices: those that are over, as they were told, and those that run, so far."""

    def __init__(self) -> None:
        self._told_s = 0.0
        self._started_s: dict[int, float] = {}
        self._next = 0
        self._read_s = 0.0

    def enter(self, now_s: float) -> int:
        """A slice starts. Returns its number, for ``leave``."""
        self._next += 1
        self._started_s[self._next] = now_s
        return self._next

    def leave(self, number: int, told_s: float) -> None:
        """It is over, and its requests are told so many seconds."""
        del self._started_s[number]
        self._told_s += told_s

    @property
    def is_running(self) -> bool:
        """Whether a slice has begun and not ended."""
        return bool(self._started_s)

    def read(self, now_s: float) -> float:
        """Never goes back: a slice that told less than it took has run a little into the next window."""
        running_s = sum(max(0.0, now_s - started_s) for started_s in self._started_s.values())
        self._read_s = max(self._read_s, self._told_s + running_s)
        return self._read_s


class EnergyAccount:
    """One per counter and replica. ``declared_watts``: of a busy second until one was measured; None: nothing is said
    before that."""

    def __init__(self, *, declared_watts: float | None = None) -> None:
        self._declared = declared_watts
        self._declared_s = 0.0 if declared_watts is None else _DECLARED_S
        self._rate = declared_watts
        self._active_j = self._work_s = 0.0  # of the latest windows, older ones less
        self._idle_j = self._idle_s = 0.0
        self._measured_j = self._said_j = 0.0
        self._done_s = self._told_s = 0.0
        self._unsaid_s = 0.0
        self._was_busy = False

    @property
    def rate(self) -> float | None:
        """Joules that a busy second is told now."""
        return self._rate

    @property
    def idle_watts(self) -> float | None:
        """As measured in windows in which nothing ran; None: there was none."""
        return self._idle_j / self._idle_s if self._idle_s else None

    @property
    def carried_j(self) -> float:
        """Measured and not said yet; below 0: the other way round. That of work which still runs is part of it."""
        return self._measured_j - self._said_j

    def take(self, work_s: float) -> float | None:
        """Joules of busy seconds that a request is told now; None: there is no rate."""
        self._told_s += work_s
        if self._rate is None:
            self._unsaid_s += work_s
            return None
        joules = self._rate * work_s
        self._said_j += joules
        return joules

    def forgo(self, work_s: float) -> None:
        """Busy seconds that no request is told: their joules are everybody's."""
        self._told_s += work_s

    def lapse(self) -> None:
        """The counter gives no reading: nothing is said until it does."""
        self._rate = self._declared

    def lose(self, work_s: float) -> None:
        """A window whose joules nobody knows: the counter began anew. What was said of it stands."""
        self._done_s += work_s
        if self._work_s:
            self._measured_j += self._active_j / self._work_s * max(0.0, work_s - self._unsaid_s)
        self._unsaid_s = 0.0

    def close(self, window: Window) -> Split:
        """Attribute a window, and have the rate follow."""
        idle_j = self._idle_of(window)
        # A counter that lags says the last joules of a slice in the window after it.
        is_ours = bool(window.work_s) or self._was_busy
        active_j = (window.joules - idle_j) * min(1.0, window.own_active) if is_ours else 0.0
        self._was_busy = bool(window.work_s)
        self._done_s += window.work_s
        if window.work_s:
            self._active_j = _KEPT * self._active_j + active_j
            self._work_s = _KEPT * self._work_s + window.work_s
        else:
            self._active_j += active_j
            self._told_s = self._done_s  # nothing runs: whatever was not told by now never will be
        measured = self._measured()
        # What was told no joules is nobody's: others must not pay for it.
        active_j -= min(active_j, measured * self._unsaid_s)
        self._unsaid_s = 0.0
        self._measured_j += active_j
        if measured > 0.0:
            self._rate = self._corrected(measured)
        own_idle_j = idle_j * min(1.0, window.own_idle)
        elsewhere_j = max(0.0, window.joules - own_idle_j - active_j)
        return Split(metered_j=window.joules, idle_j=own_idle_j, elsewhere_j=elsewhere_j, active_j=active_j)

    def _idle_of(self, window: Window) -> float:
        if window.is_idle and not window.work_s and not (self._was_busy and self._idle_s):
            self._idle_j = _KEPT_IDLE * self._idle_j + window.joules
            self._idle_s = _KEPT_IDLE * self._idle_s + window.seconds
            return window.joules
        if self.idle_watts is None:  # the same power is assumed, busy or not
            return window.joules * max(0.0, 1.0 - window.work_s / window.seconds)
        return min(window.joules, self.idle_watts * window.seconds)

    def _measured(self) -> float:
        """Watts of the latest windows' work, nearer to what was declared the less work there was; 0: there was none."""
        if not self._work_s:
            return 0.0
        return (self._active_j + self._declared_s * (self._declared or 0.0)) / (self._work_s + self._declared_s)

    def _corrected(self, measured: float) -> float:
        """The rate at which what is owed is said in the next few windows."""
        running_j = measured * max(0.0, self._done_s - self._told_s)
        rate = measured + (self.carried_j - running_j) / (self._work_s + self._declared_s)
        return min(_MOST_CORRECTION * measured, max(measured / _MOST_CORRECTION, rate))
