"""States of running jobs in the shared store, so that a later attempt need not begin anew.

The store alone says which there are: an index that forgot the last second, or everything, costs no work. What is read
back was sealed for this very job (``serving.stores.sealed``), or is passed over.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec
import structlog

from serving.errors import ServingError, StoreUnavailable
from serving.replica.job.snapshots import snapshot_step
from serving.stores.artefacts import ArtefactStore
from serving.stores.jobs.base import JobRecord, Lease, folder
from serving.stores.sealed import Sealer

if TYPE_CHECKING:
    from serving.replica.job.held import Bench, HeldJob

_log = structlog.get_logger(__name__)
_NAME: Final = re.compile(r"checkpoint-(\d{1,9})-[A-Za-z0-9]+\.safetensors")
MAX_STORE_RETRY_S: Final = 5.0
_KEPT: Final = 2
"""The newest, and one in case that cannot be read."""


class Checkpoints:
    """One per worker. Keys hold the lease's token: two attempts that overlap never write the same file."""

    def __init__(self, store: ArtefactStore, secret: bytes) -> None:
        self._store = store
        self._sealer = Sealer(secret, "checkpoint")
        self._known: dict[str, list[str]] = {}

    async def save(self, job: JobRecord, lease: Lease, snapshot: bytes) -> int:
        """Write one; those before it stay until ``prune``. Returns the steps in it. Raises: StoreUnavailable."""
        step = snapshot_step(snapshot)
        name = f"checkpoint-{step}-{lease.token[:12]}.safetensors"
        await self._store.put(f"{folder(job.id)}/{name}", self._sealer.seal(_seal_name(job), snapshot))
        names = self._known.setdefault(job.id, [])
        self._known[job.id] = [*(one for one in names if one != name), name]
        return step

    async def load(self, job: JobRecord) -> bytes | None:
        """Read the one with the most steps that can be read. None: the job begins anew. Raises: StoreUnavailable."""
        names = sorted(filter(_NAME.fullmatch, await self._store.names(folder(job.id))), key=_step_of)
        self._known[job.id] = list(names)
        for name in reversed(names):
            with contextlib.suppress(FileNotFoundError):
                sealed = await self._store.read(f"{folder(job.id)}/{name}")
                snapshot = self._sealer.open(_seal_name(job), sealed)
                if snapshot is not None and _is_of(job, name, snapshot):
                    return snapshot
                _log.warning("a checkpoint is not what was written; looking for an earlier one", job=job.id, name=name)
        return None

    async def prune(self, job: JobRecord) -> None:
        """Remove all that are known here but the last ones. What cannot be removed goes with the folder of the job."""
        names = self._known.get(job.id, [])
        self._known[job.id] = names[-_KEPT:]
        await self._remove(job, names[:-_KEPT])

    async def drop(self, job: JobRecord) -> None:
        """Remove all that are known here: the job is over."""
        await self._remove(job, self._known.pop(job.id, []))

    async def _remove(self, job: JobRecord, names: list[str]) -> None:
        for name in names:
            with contextlib.suppress(StoreUnavailable):
                await self._store.delete(f"{folder(job.id)}/{name}")

    def forget(self, job_id: str) -> None:
        """The job has left this worker, to be gone on with elsewhere."""
        self._known.pop(job_id, None)


@dataclass(slots=True)
class Saving:
    """When a checkpoint is written, and a preview. One per worker."""

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


def _seal_name(job: JobRecord) -> str:
    """The id can come again with another request, when a key is used again after the index was lost."""
    made_of = msgspec.json.encode((job.payload, job.point, job.seed), order="sorted")
    return f"{job.id} {hashlib.sha256(made_of).hexdigest()}"


def _step_of(name: str) -> int:
    return int(name.split("-")[1])


def _is_of(job: JobRecord, name: str, snapshot: bytes) -> bool:
    try:
        return snapshot_step(snapshot) == _step_of(name) <= job.num_steps
    except ValueError:
        return False
