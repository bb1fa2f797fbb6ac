"""How many times its prediction a request may take, learnt from what requests took: a reservation is multiplied by it.

A planner wants the expected cost, an account an upper bound of it. The two differ most on a machine that is slower than
the one that was measured, and where it takes another power than was declared. The one says nothing of the other, so
joules and seconds have a factor each.

The dearest of the recent requests counts, not their mean: a factor goes up at once, because whoever comes meanwhile
reserves by it, and down slowly. Before anything has run, so much is set aside that a small account pays for one request
at a time.
"""

from __future__ import annotations

import math

from schedulers.admission import Cost, Factors

_MARGIN = 1.25
"""The next request may be a little dearer than the dearest."""
_FORGOTTEN = 0.02
"""Of the distance to a request that took less: half of a peak is gone after some 35 of them."""
_UNPROVEN = 100.0
"""Power has been seen to be declared 67 times too low."""
_VARIED = 8.0
"""How much dearer than the first one others may be."""
_MOST = 1e4
"""More than kilowatts for watts: no prediction is wrong by more, so it was not the work that took it."""


class Overrun:
    """Of one kind of cost. ``unproven``: the factor before anything was observed. After so many requests it is the
    root, of so many and one, of that, or of 8."""

    __slots__ = ("_num_seen", "_peak", "_unproven")

    def __init__(self, unproven: float = _UNPROVEN) -> None:
        self._unproven = unproven
        self._peak = 0.0
        self._num_seen = 0

    @property
    def factor(self) -> float:
        """From 1 to 10,000. Never less than the prediction itself: what was cheap may have been lucky."""
        doubt = self._unproven
        if self._num_seen:
            doubt = math.pow(min(_VARIED, doubt), 1 / (1 + self._num_seen))
        return min(_MOST, max(doubt, _MARGIN * self._peak))

    def observe(self, predicted: float, actual: float) -> None:
        """So much was predicted *as far as the request went*, and it did take so much. What was predicted to take
        nothing, or is no number, teaches nothing."""
        if not (0.0 < predicted < math.inf and 0.0 <= actual < math.inf):
            return
        ratio = min(_MOST, actual / predicted)
        self._peak = max(ratio, self._peak + _FORGOTTEN * (ratio - self._peak))
        self._num_seen += 1


class Overruns:
    """Of the joules and of the seconds of one model, as one process sees it. ``unproven``: see ``Overrun``."""

    __slots__ = ("_joules", "_seconds")

    def __init__(self, unproven: float = _UNPROVEN) -> None:
        self._joules = Overrun(unproven)
        self._seconds = Overrun(unproven)

    @property
    def factors(self) -> Factors:
        """What to reserve by now."""
        return Factors(self._joules.factor, self._seconds.factor)

    def observe(self, predicted: Cost, actual: Cost) -> None:
        """See ``Overrun.observe``. What took no time did not run, and teaches nothing."""
        if actual.seconds > 0.0:
            self._joules.observe(predicted.joules, actual.joules)
            self._seconds.observe(predicted.seconds, actual.seconds)
