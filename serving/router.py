"""The request router of inner deployments: fewest predicted seconds of queued work first.

Ray's default counts requests. Ours costs from 1 to 4 stages and from 1 to 64 images, so a count says little. This
gateway knows what it has sent and not got back; replicas report the rest, including what other gateways sent, in their
routing stats. ``schedulers.routing`` does the ranking.
"""

from __future__ import annotations

import time
from typing import Any

from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, ReplicaResult, RequestRouter, RunningReplica

from schedulers.routing import OutstandingWork, rank

STATS_PERIOD_S = 0.25
"""How often replicas report; Ray's own default of 10 s is too old to be of use for work of milliseconds."""


class LeastWorkRouter(FIFOMixin, RequestRouter):
    """Ranks replicas by predicted seconds of work, from ``predicted_s`` of the handle call."""

    def initialize_state(self, **_kwargs: Any) -> None:
        """Called once by Serve."""
        self._outstanding = OutstandingWork()
        self._calls: dict[str, tuple[str, float]] = {}
