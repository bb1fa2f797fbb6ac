"""The chat node of the graph: an engine that generates text, and the replica's half of the transport.

Gateways call ``open`` and ``cancel``; everything else is what Ray Serve asks of a replica.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import structlog
from ray import serve

from serving.config import ResolvedConfig, ResolvedModel, StreamOptions
from serving.delivery.stream.wire import ChoiceStart, Frame, HeldImages
from serving.energy.choose import replica_energy
from serving.energy.spent import Spent
from serving.replica.chat.base import ChatEngine, EngineStats
from serving.replica.chat.hub import ChoiceHub
from serving.stores.tenants import build_watch
from serving.system.process import freeze_start_up
from serving.telemetry import setup
from serving.telemetry.events import ChatEngineCounted, Sink
from serving.tenants import LiveTenants

_log = structlog.get_logger(__name__)
_METRICS_PERIOD_S = 1.0


class Vlm:
    """Ray Serve deployment class. One process (and, with vLLM, its engine process), one model."""

    # Serve awaits a constructor that is a coroutine: the engine then starts on the loop that it will run on.
    async def __init__(self, model: ResolvedModel[StreamOptions], config: ResolvedConfig) -> None:  # type: ignore[misc]
        tell = setup(config.metrics_dir, config.settings.log_level)
        from serving.replica.chat.setup import build_engine, calibration_of

        started_s = time.monotonic()
        calibration = await asyncio.to_thread(calibration_of, model)  # which reads the weights, and may refuse
        self._engine: ChatEngine = build_engine(model)
        await self._engine.start()
        tenants = LiveTenants(config.settings.tenants)
        self._watch = build_watch(config, tenants)
        await self._watch.begin()
        self._energy = replica_energy(model, config.settings.energy.meter, tell, model.watts)
        self._hub = ChoiceHub(
            self._engine,
            serve.get_replica_context().replica_id.unique_id,
            model=model.id,
            tell=tell,
            max_running=model.options.max_num_seqs,
            max_waiting=model.options.max_queue,
            interval_s=model.options.stream_interval_ms / 1e3,
            weights=tenants.weights,
            max_kv_bytes=tenants.view(lambda tenant: tenant.max_kv_bytes),
            watts=model.watts,
            energy=self._energy,
            calibration=calibration,
        )
        self._held = HeldImages()
        self._num_reports = 0
        self._meter = asyncio.get_running_loop().create_task(self._energy.run())
        self._reporter = asyncio.get_running_loop().create_task(self._report(model.id, tell))
        freeze_start_up()
        seconds = round(time.monotonic() - started_s, 2)
        _log.info("chat replica ready", model=model.id, engine=model.options.engine, seconds=seconds)

    async def open(
        self,
        gateway: str,
        session: int,
        starts: Sequence[ChoiceStart],
        *,
        key: str = "",
        predicted_s: float = 0.0,
        avoid: tuple[str, ...] = (),
    ) -> AsyncGenerator[Frame, None]:
        """See ``ChoiceHub.open``. The keyword arguments are read by the request router, not here."""
        for start in starts:
            self._held.add(image.key for image in start.request.images)
        return self._hub.open(gateway, session, starts)

    async def cancel(self, gateway: str, ids: Sequence[int], *, replica: str = "") -> dict[int, Spent]:
        """See ``ChoiceHub.cancel``. ``replica`` is read by the request router, not here."""
        return self._hub.cancel(gateway, ids)

    def record_routing_stats(self) -> dict[str, Any]:
        """What the request router wants to know about this replica."""
        self._num_reports += 1
        return {"queued_s": self._hub.queued_s(), "report": self._num_reports, "held": self._held.marks()}

    async def check_health(self) -> None:
        """Called by the controller, for the first time before any request.

        Raises: EngineFailed: the engine is dead or stuck; the controller replaces this replica.
        """
        await self._engine.check_health()

    async def _report(self, model: str, tell: Sink) -> None:
        last = EngineStats()
        while True:
            now = self._engine.stats()
            tell(ChatEngineCounted(model, now, last))
            last = now
            await asyncio.sleep(_METRICS_PERIOD_S)

    async def __del__(self) -> None:
        """Serve awaits this once the calls in flight are done."""
        self._reporter.cancel()
        self._meter.cancel()
        await self._hub.stop()
        await self._engine.stop()
        await self._watch.stop()
