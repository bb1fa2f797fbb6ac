"""The replica with the least work, of very many: what ``routing.rank`` puts first, without looking at all of them."""

from __future__ import annotations

import math
from collections.abc import Collection
from heapq import heapify, heappop, heappush

from schedulers.routing import TIE_S, Ledger, ReplicaLoad, preference

_STALE = 4
"""Stale entries for each replica before they are swept out."""


class LeastLoaded(Ledger):
    """A ledger that knows its replicas and finds the least loaded one in O(log replicas), amortised.

    A replica works off what it reported, and what was sent since waits. So there are two orders that time does not
    change: of those that still work on their report, by when all of it would be done; of the others, by what was sent.
    ``key``: loads less than ``TIE_S`` apart are equal, and go by rendezvous hash of it. A replica that is silent while
    calls are open there has more to do than either order says; that is seen when it comes up, and its place is moved
    back to what it has then, which only grows until it is heard of.
    """

    def __init__(self, replica_ids: Collection[str], key: str = "", *, ends_with_call: bool = True) -> None:
        super().__init__(ends_with_call=ends_with_call)
        self._key = key
        self._ids: dict[str, int] = {}
        #: (order, tie, version, replica); an entry of an older version is stale.
        self._working: list[tuple[float, int, int, str]] = []
        self._idle: list[tuple[float, int, int, str]] = []
        #: (when its report is worked off, version, replica).
        self._turning: list[tuple[float, int, str]] = []
        self._versions: dict[str, int] = {}
        for replica_id in replica_ids:
            self.add(replica_id)

    def add(self, replica_id: str) -> None:
        """A replica has come."""
        self._ids[replica_id] = -preference(self._key, replica_id)
        self._list(replica_id)

    def start(self, replica_id: str, call_id: str, predicted_s: float, now_s: float) -> None:
        """See ``Ledger``."""
        super().start(replica_id, call_id, predicted_s, now_s)
        self._list(replica_id)

    def finish(self, replica_id: str, call_id: str) -> None:
        """See ``Ledger``."""
        super().finish(replica_id, call_id)
        self._list(replica_id)

    def report(self, replica_id: str, queued_s: float, measured_at_s: float) -> None:
        """See ``Ledger``."""
        super().report(replica_id, queued_s, measured_at_s)
        self._list(replica_id)

    def keep_only(self, replica_ids: Collection[str]) -> None:
        """See ``Ledger``."""
        super().keep_only(replica_ids)
        self._ids = {name: tie for name, tie in self._ids.items() if name in replica_ids}

    def least(self, now_s: float) -> ReplicaLoad:
        """The least loaded replica. Raises: LookupError: there is none."""
        self._turn(now_s)
        while True:
            heap, bound_s = self._next(now_s)
            _, tie, version, replica_id = heap[0]
            load = self.load(replica_id, now_s)
            if load.queued_s <= bound_s + TIE_S:
                return load
            heappop(heap)
            heappush(self._idle, (load.queued_s, tie, version, replica_id))

    def _list(self, replica_id: str) -> None:
        tie = self._ids.get(replica_id)
        if tie is None:
            return
        version = self._versions[replica_id] = self._versions.get(replica_id, 0) + 1
        replica = self._replicas.get(replica_id)
        if replica is None or replica.measured_at_s == -math.inf:
            unreported_s = 0.0 if replica is None else replica.unreported_s
            heappush(self._idle, (unreported_s, tie, version, replica_id))
        else:
            done_s = replica.measured_at_s + replica.reported_s
            heappush(self._working, (done_s + replica.unreported_s, tie, version, replica_id))
            heappush(self._turning, (done_s, version, replica_id))
        if len(self._idle) + len(self._working) > 2 * _STALE * (len(self._ids) + 16):
            self._sweep()

    def _is_fresh(self, version: int, replica_id: str) -> bool:
        return replica_id in self._ids and self._versions[replica_id] == version

    def _sweep(self) -> None:
        for heap in (self._idle, self._working):
            heap[:] = [entry for entry in heap if self._is_fresh(entry[2], entry[3])]
            heapify(heap)
        self._turning[:] = [entry for entry in self._turning if self._is_fresh(entry[1], entry[2])]
        heapify(self._turning)

    def _turn(self, now_s: float) -> None:
        """Those whose report is worked off are ordered by what was sent since."""
        turning = self._turning
        while turning and turning[0][0] <= now_s:
            _, version, replica_id = heappop(turning)
            if self._is_fresh(version, replica_id):
                version = self._versions[replica_id] = version + 1
                unreported_s = self._replicas[replica_id].unreported_s
                heappush(self._idle, (unreported_s, self._ids[replica_id], version, replica_id))

    def _next(self, now_s: float) -> tuple[list[tuple[float, int, int, str]], float]:
        """The heap whose first replica has the least work, and how much that is at least."""
        for heap in (self._idle, self._working):
            while heap and not self._is_fresh(heap[0][2], heap[0][3]):
                heappop(heap)
        if not self._idle and not self._working:
            raise LookupError("there is no replica")
        idle_s = self._idle[0][0] if self._idle else math.inf
        working_s = self._working[0][0] - now_s if self._working else math.inf
        return (self._idle, idle_s) if idle_s <= working_s else (self._working, working_s)
