"""The request routers of inner deployments: fewest predicted seconds of queued work first; for chat, first of all the
replica that holds the image.

Ray's default counts requests. A call of ours holds from 1 to 64 images and each costs from 1 to 4 stages, so a count
says little. A gateway knows what it has sent and not got back; replicas report the rest, including what other gateways
sent, in their routing stats. The ranking itself is ``schedulers.routing``.
"""

from __future__ import annotations

import time
from typing import Any

from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

from schedulers.affinity import rank_by_affinity
from schedulers.routing import Ledger, rank
from serving.delivery.stream.wire import mark
from serving.system import process

STATS_PERIOD_S = 0.5
"""How often replicas report; Ray's own default of 10 s is too old to be of use for work of milliseconds."""


class CountedRouter(RequestRouter):
    """A router whose replicas ``serving.system.process`` can count."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        process.register(self._deployment_id.name, lambda: len(self.curr_replicas))


class PlainRouter(FIFOMixin, CountedRouter):
    """Any replica is as good as another: for deployments that are sent nothing but pings."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """All of them."""
        return [candidate_replicas]


class WorkRouter(CountedRouter):
    """Ranks replicas by predicted seconds of work, and first of all those that hold what a call wants.

    Calls say in keyword arguments: ``predicted_s``; and where replicas hold images, ``key`` of the first one, replicas
    to ``avoid``, or the one ``replica`` that they are for.
    """

    ends_with_call = True
    """Whether work is done when its call comes back."""

    def initialize_state(self, **_kwargs: Any) -> None:
        """Called once by Serve, before anything else."""
        self._ledger = Ledger(ends_with_call=self.ends_with_call)
        self._held: dict[str, frozenset[int]] = {}
        self._last_report: dict[str, int] = {}

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """One rank per replica, so that Serve falls back to the next when one is full."""
        kwargs = pending_request.kwargs if pending_request is not None else {}
        by_id = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        if wanted := by_id.get(kwargs.get("replica", "")):
            return [[wanted]]
        if len(candidate_replicas) < 2:
            return [candidate_replicas]
        now_s = time.monotonic()
        for name, replica in by_id.items():
            self._take_report(name, replica.routing_stats, now_s)
        ranked = self._ranked(list(by_id), kwargs, now_s)
        avoid = kwargs.get("avoid", ())
        ranked.sort(key=lambda name: name in avoid)  # stable
        return [[by_id[name]] for name in ranked]

    def _ranked(self, names: list[str], kwargs: dict[str, Any], now_s: float) -> list[str]:
        loads = [self._ledger.load(name, now_s) for name in names]
        key = kwargs.get("key", "")
        if not key:
            # Ties are broken differently by each gateway, lest all of them send to the same idle replica.
            return [load.replica_id for load in rank(loads, key=str(id(self)))]
        holders = {name for name in names if mark(key) in self._held.get(name, ())}
        predicted_s = float(kwargs.get("predicted_s", 0.0))
        return [load.replica_id for load in rank_by_affinity(loads, key, predicted_s, holders)]

    def _take_report(self, name: str, stats: dict[str, Any], now_s: float) -> None:
        number = stats.get("report")
        if isinstance(number, int) and number != self._last_report.get(name):
            self._last_report[name] = number
            self._held[name] = frozenset(stats.get("held", ()))
            self._ledger.report(name, float(stats["queued_s"]), now_s)

    async def _choose_replica_for_request(
        self, pending_request: PendingRequest, *, is_retry: bool = False
    ) -> RunningReplica:
        """Count a call from the moment of the choice. Serve's own hook, ``on_request_routed``, waits until the replica
        has accepted the call, which one that hangs never does: it would look idle and get every call."""
        replica: RunningReplica = await super()._choose_replica_for_request(pending_request, is_retry=is_retry)
        predicted_s = float(pending_request.kwargs.get("predicted_s", 0.0))
        call_id = pending_request.metadata.internal_request_id
        self._ledger.start(replica.replica_id.unique_id, call_id, predicted_s, time.monotonic())
        return replica

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """A call came back, in whatever way."""
        self._ledger.finish(replica_id.unique_id, internal_request_id)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Replicas came or went."""
        super().update_replicas(replicas)
        names = {replica.replica_id.unique_id for replica in replicas}
        self._ledger.keep_only(names)
        self._held = {name: held for name, held in self._held.items() if name in names}
        self._last_report = {name: number for name, number in self._last_report.items() if name in names}


class LeastWorkRouter(FIFOMixin, WorkRouter):
    """For calls of which any replica may take any."""


class AffinityRouter(WorkRouter):
    """For chats: a request must get the replica chosen for it, so not first in, first out. Calls return while their
    work goes on."""

    ends_with_call = False
