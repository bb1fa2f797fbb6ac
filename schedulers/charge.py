"""What a row is charged, as against what the table says: its share of a batch, on the machine as it is.

A table has the times of a row alone and of its share of a usual batch. Which of the two a row is charged depends on who
comes with it: on an idle server it runs alone, at several times the cost of a row in a full batch. A machine that
is slower than the one that was measured costs more either way. Both show in what rows were charged, of which a running
mean is kept, as a multiple of the share.

    expected = share * min(mean, own batch * slowness)

The rows of one request come together, so none of them is charged more than its share of *their* batch, times how much
more than alone the mean says.
"""

from __future__ import annotations

import math

from schedulers.running_mean import RunningMean

_WEIGHT = 0.1
"""Of the newest row in the mean."""
_LEAST, _MOST = 0.1, 64.0
USUAL_ROWS = 16
"""Rows of the batch that a share is of: how many come together under load."""


class Charge:
    """Of one model, as one process sees it."""

    __slots__ = ("_mean",)

    def __init__(self) -> None:
        self._mean = RunningMean(_WEIGHT)

    def observe(self, share_s: float, actual_s: float) -> None:
        """A row was charged ``actual_s``, and its share of a usual batch is ``share_s``. What is no positive time
        teaches nothing."""
        if not (0.0 < share_s < math.inf and 0.0 < actual_s < math.inf):
            return
        self._mean.observe(min(_MOST, max(_LEAST, actual_s / share_s)))

    def expected_s(self, share_s: float, alone_s: float, rows: int) -> float:
        """Of each of ``rows`` that come together. ``alone_s``: of a row alone; 0 where nobody measured it."""
        if share_s <= 0.0:
            return share_s
        alone = max(1.0, alone_s / share_s)
        own = 1.0 + (alone - 1.0) * max(0, USUAL_ROWS - rows) / ((USUAL_ROWS - 1) * rows)
        mean = self._mean.value
        return share_s * (own if mean is None else min(mean, own * max(1.0, mean / alone)))
