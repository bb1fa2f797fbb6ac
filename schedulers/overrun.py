"""How many times its prediction a request may take, learnt from what requests took: a reservation is multiplied by it.

A planner wants the expected cost, an account an upper bound of it. The two differ most on a machine that is slower than
the one that was measured, so the dearest of the recent requests counts, not their mean: it goes up at once, because
whoever comes meanwhile reserves by it, and down slowly. Before anything has run, much is set aside.
"""

from __future__ import annotations

import math

_MARGIN = 1.25
"""The next request may be a little dearer than the dearest."""
_FORGOTTEN = 0.02
"""Of the distance to a request that took less: half of a peak is gone after some 35 of them."""
_UNPROVEN = 8.0
_MOST = 16.0


class Overrun:
    """Of one model, as one process sees it. ``unproven``: the factor before anything was observed. After so many
    requests it is the root, of so many and one, of that."""

    __slots__ = ("_num_seen", "_peak", "_unproven")

    def __init__(self, unproven: float = _UNPROVEN) -> None:
        self._unproven = unproven
        self._peak = 0.0
        self._num_seen = 0

    @property
    def factor(self) -> float:
        """From 1 to 16. Never less than the prediction itself: what was cheap may have been lucky."""
        doubt = math.pow(self._unproven, 1 / (1 + self._num_seen))
        return min(_MOST, max(doubt, _MARGIN * self._peak))

    def observe(self, predicted_s: float, actual_s: float) -> None:
        """A request was predicted to take so long *as far as it went*, and did take so long. What was predicted to
        take no time, or took none, or a time that is no number, teaches nothing."""
        if not (0.0 < predicted_s < math.inf and 0.0 < actual_s < math.inf):
            return
        ratio = min(_MOST, actual_s / predicted_s)
        self._peak = max(ratio, self._peak + _FORGOTTEN * (ratio - self._peak))
        self._num_seen += 1
