"""The request routers of inner deployments: fewest predicted seconds of queued work first; for chat, first of all the
replica that holds the image.

Ray's default counts requests. A call of ours holds from 1 to 64 images and each costs from 1 to 4 stages, so a count
says little. A gateway knows what it has sent and not got back; replicas report the rest, including what other gateways
sent, in their routing stats. Of many replicas, the least loaded one is found without looking at all of them
(``schedulers.least_loaded``); they are ranked only for a request whose image one of them may hold, or once the first
choice will not have it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from typing import Any, cast

from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

from schedulers.affinity import rank_by_affinity
from schedulers.least_loaded import LeastLoaded
from schedulers.routing import rank
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
        # Ties are broken differently by each gateway, lest all of them send to the same idle replica.
        self._ledger = LeastLoaded((), str(id(self)), ends_with_call=self.ends_with_call)
        self._by_id: dict[str, RunningReplica] = {}
        self._held: dict[str, frozenset[int]] = {}
        self._last_report: dict[str, int] = {}

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """One rank per replica, so that Serve falls back to the next when one is full. They are made as Serve comes to
        them: it seldom asks for more than the first."""
        kwargs = pending_request.kwargs if pending_request is not None else {}
        if wanted := self._by_id.get(kwargs.get("replica", "")):
            return [[wanted]]
        if len(self._by_id) < 2:
            return [candidate_replicas]
        return cast("list[list[RunningReplica]]", self._ranks(kwargs))

    def _ranks(self, kwargs: dict[str, Any]) -> Iterator[list[RunningReplica]]:
        avoid, first = kwargs.get("avoid", ()), ""
        if not kwargs.get("key") and (least := self._ledger.least(time.monotonic()).replica_id) not in avoid:
            yield [self._by_id[first := least]]
        ranked = self._ranked(list(self._by_id), kwargs, time.monotonic())
        ranked.sort(key=lambda name: name in avoid)  # stable
        yield from ([self._by_id[name]] for name in ranked if name != first and name in self._by_id)

    def _ranked(self, names: list[str], kwargs: dict[str, Any], now_s: float) -> list[str]:
        loads = [self._ledger.load(name, now_s) for name in names]
        key = kwargs.get("key", "")
        if not key:
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
        """Replicas came or went, or said what they have to do."""
        self.take_reports(replicas)
        super().update_replicas(replicas)

    def take_reports(self, replicas: Collection[RunningReplica]) -> None:
        """These are all that there are, and what they said last."""
        now_s, before = time.monotonic(), self._by_id
        self._by_id = {replica.replica_id.unique_id: replica for replica in replicas}
        self._keep_known()
        for name, replica in self._by_id.items():
            if name not in before:
                self._ledger.add(name)
            self._take_report(name, replica.routing_stats, now_s)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """It is not considered any more."""
        super().on_replica_actor_died(replica_id)
        self._by_id.pop(replica_id.unique_id, None)
        self._keep_known()

    def _keep_known(self) -> None:
        self._ledger.keep_only(self._by_id)
        self._held = {name: held for name, held in self._held.items() if name in self._by_id}
        self._last_report = {name: number for name, number in self._last_report.items() if name in self._by_id}


class LeastWorkRouter(FIFOMixin, WorkRouter):
    """For calls of which any replica may take any."""


class AffinityRouter(WorkRouter):
    """For chats: a request must get the replica chosen for it, so not first in, first out. Calls return while their
    work goes on."""

    ends_with_call = False
