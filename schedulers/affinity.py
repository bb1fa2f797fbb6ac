"""Which replica gets a request whose image another replica may hold: stay with it, unless it has too much to do.

Rendezvous hashing (D. Thaler, C. Ravishankar, 1998) ranks the replicas of each key; a replica that comes or goes moves
only the keys it gains or loses. The bound on load is that of V. Mirrokni, M. Thorup, M. Zadimoghaddam, "Consistent
Hashing with Bounded Loads", 2018: no replica is chosen whose load exceeds ``bound`` times the mean.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from schedulers.routing import ReplicaLoad, preference

BOUND = 1.25
"""How far over the mean a replica may be and still get requests for the sake of what it holds."""
SLACK = 4
"""Requests of its own size that a request finds no reason to leave for, however small the mean: an engine that batches
hardly slows down for them. Without it one request in flight would send the next one with that image elsewhere."""


def rank_by_affinity(
    replicas: Sequence[ReplicaLoad],
    key: str,
    added_s: float,
    holders: Collection[str] = (),
    bound: float = BOUND,
) -> list[ReplicaLoad]:
    """Replicas, best first: those with room that hold the image, those with room, then the rest by load.

    ``added_s`` is the work that the request brings; a replica has room if its load with it is at most ``bound`` times
    the mean with it, or at most ``SLACK`` such requests over the least loaded. ``holders``: replicas known to hold what
    ``key`` stands for.

    Raises:
        ValueError: ``bound`` is under 1, or a load is NaN or negative.
    """
    if not bound >= 1.0:
        raise ValueError(f"bound is {bound}; need at least 1")
    limit_s = load_limit_s([replica.queued_s for replica in replicas], added_s, bound)

    def order(replica: ReplicaLoad) -> tuple[bool, float, bool, int]:
        is_over = replica.queued_s + added_s > limit_s
        is_stranger = replica.replica_id not in holders
        return is_over, replica.queued_s if is_over else 0.0, is_stranger, -preference(key, replica.replica_id)

    return sorted(replicas, key=order)


def load_limit_s(loads_s: Sequence[float], added_s: float, bound: float) -> float:
    """Most work that a replica may have after getting the request.

    Raises:
        ValueError: a load is NaN or negative.
    """
    if any(not load_s >= 0.0 for load_s in (*loads_s, added_s)):
        raise ValueError(f"loads are {list(loads_s)} and {added_s}; need numbers >= 0")
    if not loads_s:
        return math.inf
    mean_s = (math.fsum(loads_s) + added_s) / len(loads_s)
    return max(bound * mean_s, min(loads_s) + (1 + SLACK) * added_s)
