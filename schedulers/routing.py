"""Which replica gets the next call: the one with the fewest predicted seconds of work before it.

What a router knows of a replica is a report that is already old, and what it has sent there itself since. A replica
works off one second of its report per second; calls sent after the report was measured come on top.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

#: Loads closer than this count as equal; the key then decides, so that repeats of a key meet the same replica.
TIE_S = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaLoad:
    """Predicted seconds until ``replica_id`` would start new work."""

    replica_id: str
    queued_s: float


def rank(replicas: Iterable[ReplicaLoad], key: str = "", tie_s: float = TIE_S) -> list[ReplicaLoad]:
    """Replicas, best first: by load in steps of ``tie_s``, equals by rendezvous hash of ``key``.

    Rendezvous (D. Thaler, C. Ravishankar, 1998): a replica that comes or goes moves only its own share of the keys.

    Raises:
        ValueError: if a load is NaN or negative, or ``tie_s`` is not positive.
    """
    if not tie_s > 0.0:
        raise ValueError(f"tie_s is {tie_s}; need a number > 0")
    return sorted(replicas, key=lambda replica: (_steps(replica, tie_s), -preference(key, replica.replica_id)))


def _steps(replica: ReplicaLoad, tie_s: float) -> float:
    if not replica.queued_s >= 0.0:
        raise ValueError(f"queued_s of replica {replica.replica_id} is {replica.queued_s}; need a number >= 0")
    return math.inf if math.isinf(replica.queued_s) else math.floor(replica.queued_s / tie_s)


def preference(key: str, replica_id: str) -> int:
    """How much ``key`` prefers ``replica_id`` in rendezvous hashing: a hash of the two, 64 bits."""
    digest = hashlib.blake2b(f"{len(key)}:{key}{replica_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


@dataclass(slots=True)
class _Replica:
    #: Call id -> (sent at, predicted seconds), in the order of sending.
    calls: dict[str, tuple[float, float]] = field(default_factory=dict)
    reported_s: float = 0.0
    measured_at_s: float = -math.inf
    #: Predicted seconds of the open calls sent after ``measured_at_s``.
    unreported_s: float = 0.0

    def silent_s(self, now_s: float) -> float:
        """For how long the oldest open call has been waiting without a report."""
        oldest = next(iter(self.calls.values()), None)
        return 0.0 if oldest is None else max(0.0, now_s - max(oldest[0], self.measured_at_s))


class Ledger:
    """One router's knowledge of its replicas, all times on its own clock; every method but ``report`` is O(1).

    ``ends_with_call``: work is done when its call comes back. Where calls return before, as those of chat do, what was
    sent counts until the replica reports, and the end of a call says nothing.
    """

    def __init__(self, *, ends_with_call: bool = True) -> None:
        self._ends_with_call = ends_with_call
        self._replicas: dict[str, _Replica] = {}

    def start(self, replica_id: str, call_id: str, predicted_s: float, now_s: float) -> None:
        """A call was sent.

        Raises:
            ValueError: if ``predicted_s`` is negative or not finite.
        """
        if not 0.0 <= predicted_s < math.inf:
            raise ValueError(f"predicted_s is {predicted_s}; need a finite number >= 0")
        replica = self._replicas.setdefault(replica_id, _Replica())
        replica.calls[call_id] = (now_s, predicted_s)
        replica.unreported_s += predicted_s

    def finish(self, replica_id: str, call_id: str) -> None:
        """A call came back, in whatever way. Ignored when it is not known: its replica may have been forgotten."""
        replica = self._replicas.get(replica_id) if self._ends_with_call else None
        call = replica.calls.pop(call_id, None) if replica else None
        if replica is None or call is None:
            return
        sent_at_s, predicted_s = call
        if not replica.calls:
            replica.unreported_s = 0.0  # rounding must not add up
        elif sent_at_s > replica.measured_at_s:
            replica.unreported_s = max(0.0, replica.unreported_s - predicted_s)

    def report(self, replica_id: str, queued_s: float, measured_at_s: float) -> None:
        """The replica said that it had ``queued_s`` of work, from anyone, at ``measured_at_s``. O(open calls there).

        A report older than the one before, or one that is not a number, is ignored.
        """
        replica = self._replicas.setdefault(replica_id, _Replica())
        if not 0.0 <= queued_s < math.inf or not measured_at_s > replica.measured_at_s:
            return
        replica.reported_s, replica.measured_at_s = queued_s, measured_at_s
        unreported = {call_id: call for call_id, call in replica.calls.items() if call[0] > measured_at_s}
        replica.unreported_s = sum(predicted_s for _, predicted_s in unreported.values())
        if not self._ends_with_call:
            replica.calls = unreported

    def load(self, replica_id: str, now_s: float) -> ReplicaLoad:
        """Predicted seconds of work there now; 0 for a replica of which nothing is known.

        Never less than it has been silent while calls are open there: one that hangs would look idle for ever. Where
        calls return before their work is done, one that does not report fills up, and gets nothing more.
        """
        replica = self._replicas.get(replica_id)
        if replica is None:
            return ReplicaLoad(replica_id=replica_id, queued_s=0.0)
        left_s = 0.0
        if replica.measured_at_s > -math.inf:
            left_s = max(0.0, replica.reported_s - max(0.0, now_s - replica.measured_at_s))
        silent_s = replica.silent_s(now_s) if self._ends_with_call else 0.0
        return ReplicaLoad(replica_id=replica_id, queued_s=max(left_s + replica.unreported_s, silent_s))

    def keep_only(self, replica_ids: Collection[str]) -> None:
        """Forget the replicas that are gone."""
        self._replicas = {name: replica for name, replica in self._replicas.items() if name in replica_ids}
