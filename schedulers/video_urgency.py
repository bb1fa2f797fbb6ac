"""Which job goes first: the one that must be begun the soonest. One order for the shared queue and for each replica."""

from __future__ import annotations

import math

from schedulers.types import Priority

HORIZON_S = 600.0
"""A job without a deadline may be begun this long after it was made, and none later than that."""
CLASS_S = 300.0
"""What one class of priority is worth, in seconds of slack."""


def queue_key(priority: Priority, created_at_s: float, deadline_at_s: float | None, predicted_s: float) -> float:
    """The latest time to begin, a class of priority earlier or later; the smallest goes first.

    It lies within ``created_at_s`` and ``HORIZON_S`` after it, before the shift of the class. So an impossible deadline
    buys no more than "now", and nothing starves: whatever was made over ``HORIZON_S + 2 * CLASS_S`` later goes later.

    Raises: ValueError: a number is NaN, ``created_at_s`` infinite, or ``predicted_s`` negative.
    """
    deadline_s = math.inf if deadline_at_s is None else deadline_at_s
    if not math.isfinite(created_at_s) or math.isnan(deadline_s) or not 0.0 <= predicted_s < math.inf:
        raise ValueError(f"created {created_at_s}, deadline {deadline_s}, predicted {predicted_s}: need finite numbers")
    latest_s = min(max(deadline_s - predicted_s, created_at_s), created_at_s + HORIZON_S)
    return latest_s - CLASS_S * (priority - Priority.NORMAL)
