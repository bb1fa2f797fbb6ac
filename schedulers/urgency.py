"""Which job goes first: the one that is due first. One order for the shared queue and for each replica.

Nearest deadline first meets every deadline that any order could meet, and since the order of two jobs never changes,
they do not take turns.
"""

from __future__ import annotations

import math

from schedulers.types import Priority

HORIZON_S = 600.0
"""A job without a deadline, or with a later one, is taken to be due this long after it was made."""
CLASS_S = 300.0
"""By how much sooner a class of priority is due than the one below."""


def queue_key(priority: Priority, created_at_s: float, deadline_at_s: float | None, predicted_s: float) -> float:
    """When the job is due, a class of priority sooner or later; the smallest goes first.

    Before the shift of the class that is within ``HORIZON_S`` of ``created_at_s``, and no sooner than it could be done.
    So an impossible deadline buys no more than a hard one, and nothing starves: what is made over ``HORIZON_S + 2 *
    CLASS_S`` later goes later, whatever it asks for.

    Raises: ValueError: a number is NaN, ``created_at_s`` infinite, or ``predicted_s`` negative.
    """
    deadline_s = math.inf if deadline_at_s is None else deadline_at_s
    if not math.isfinite(created_at_s) or math.isnan(deadline_s) or not 0.0 <= predicted_s < math.inf:
        raise ValueError(f"created {created_at_s}, deadline {deadline_s}, predicted {predicted_s}: need finite numbers")
    due_s = min(max(deadline_s, created_at_s + predicted_s), created_at_s + HORIZON_S)
    return due_s - CLASS_S * (priority - Priority.NORMAL)
