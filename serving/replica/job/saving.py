"""When the state of a running job goes to the shared store, and a preview of it."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

import structlog

from serving.errors import ServingError
from serving.replica.job.held import Bench, HeldJob

_log = structlog.get_logger(__name__)
MAX_STORE_RETRY_S = 5.0


@dataclass(slots=True)
class Saving:
    """One per worker."""

    bench: Bench
    took_s: float = field(default=0.0, init=False)
    """What the last checkpoint took."""

    def consider(self, held: HeldJob, every: int | None = None) -> None:
        """Begin a checkpoint if so many steps were done since the last, and the store is quick enough to take one."""
        config, now_s = self.bench.config, self.bench.clock()
        is_due = held.step - held.checkpoint_step >= (every or config.checkpoint_every)
        is_time = now_s - held.checkpoint_at_s >= self.took_s / config.checkpoint_share
        is_free = held.checkpointing is None or held.checkpointing.done()
        if is_due and is_time and is_free:
            held.checkpointing = self.bench.spawn(self._save(held))

    async def _save(self, held: HeldJob) -> None:
        """The snapshot is taken by the engine between steps; writing it goes on beside them."""
        bench = self.bench
        started_s = held.checkpoint_at_s = bench.clock()
        try:
            snapshot = await bench.engine.snapshot(held.job.id)
            held.checkpoint_step = await bench.checkpoints.save(held.job, held.lease, snapshot)
            await bench.checkpoints.prune(held.job)
        except Exception as error:  # a missing checkpoint costs repeated work, later, perhaps
            held.checkpoint_at_s = bench.clock() + MAX_STORE_RETRY_S
            _log.warning("no checkpoint", job=held.job.id, error=type(error).__name__)
        self.took_s = bench.clock() - started_s
        if held.job.id not in bench.held:
            bench.checkpoints.forget(held.job.id)

    async def save_last(self, held: HeldJob) -> None:
        """All that was done, for whoever goes on with it; not while another is on its way, which would end after it."""
        await self.end(held)
        if held.admitted is not None and held.step > held.checkpoint_step:
            await self._save(held)

    async def end(self, held: HeldJob) -> None:
        """One that is just being written is waited for."""
        if held.checkpointing is not None:
            await asyncio.wait([held.checkpointing])

    async def drop(self, held: HeldJob) -> None:
        """The job is over. Its state need not wait for a checkpoint that is being written."""
        self.bench.engine.release(held.job.id)
        await self.end(held)
        await self.bench.checkpoints.drop(held.job)

    def consider_preview(self, held: HeldJob) -> None:
        """Show what the job has come to, now and then."""
        if self.bench.clock() - held.preview_at_s >= self.bench.config.preview_every_s:
            held.preview_at_s = self.bench.clock()
            self.bench.spawn(self._preview(held))

    async def _preview(self, held: HeldJob) -> None:
        with contextlib.suppress(ServingError, OSError, KeyError):
            await self.bench.files.put_preview(held.job, await self.bench.engine.preview(held.job.id))
