"""The node of the graph for durable jobs: a worker that pulls durable jobs, and the engine that it drives.

Nobody calls it with work: gateways write jobs to Redis, and replicas take them. Gateways ask whether it is there, and
what its experts were sent.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import structlog
from ray import serve

from serving.config import JobOptions, ResolvedConfig, ResolvedModel
from serving.delivery.job.experts import ExpertReport
from serving.stores.tenants import build_watch
from serving.system.process import freeze_start_up
from serving.telemetry import setup
from serving.tenants import LiveTenants

if TYPE_CHECKING:
    from serving.replica.job.setup import JobParts

_log = structlog.get_logger(__name__)


class JobReplica:
    """Ray Serve deployment class. One replica, one engine; its jobs are in Redis, so it may die at any time."""

    # Serve awaits a constructor that is a coroutine: the engine then starts on the loop that it will run on.
    async def __init__(self, model: ResolvedModel[JobOptions], config: ResolvedConfig) -> None:  # type: ignore[misc]
        tell = setup(config.metrics_dir, config.settings.log_level)
        from serving.replica.job.setup import build_parts

        started_s = time.monotonic()
        name = serve.get_replica_context().replica_id.unique_id
        tenants = LiveTenants(config.settings.tenants)
        self._watch = build_watch(config, tenants)
        await self._watch.begin()
        self._parts: JobParts = build_parts(model, config, tenants, name, tell)
        await self._parts.start()
        self._reporter = asyncio.get_running_loop().create_task(self._parts.report(tell))
        energy = self._parts.worker.bench.energy
        assert energy is not None, "build_parts gives it one"
        self._meter = asyncio.get_running_loop().create_task(energy.run())
        freeze_start_up()
        _log.info("job replica ready", model=model.id, seconds=round(time.monotonic() - started_s, 2))

    async def ping(self) -> bool:
        """Answer; for the gateway's readiness."""
        return True

    async def experts(self) -> ExpertReport:
        """What the experts of the model were sent lately."""
        return self._parts.worker.bench.experts.report()

    def record_routing_stats(self) -> dict[str, Any]:
        """What this replica has to do."""
        return {"queued_s": self._parts.worker.queued_s(), "jobs": self._parts.worker.num_held}

    async def check_health(self) -> None:
        """Called by the controller.

        Raises: EngineFailed: the engine, or a rank of it, is dead or stuck; the controller replaces this replica.
        """
        self._parts.engine.check_health()

    async def __del__(self) -> None:
        """Serve awaits this: running jobs go back into the queue at their next step boundary."""
        self._reporter.cancel()
        self._meter.cancel()
        await self._parts.stop()
        await self._watch.stop()
