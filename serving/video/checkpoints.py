"""Latents of running jobs in the shared store, so that a later attempt need not begin anew."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from serving.errors import StoreUnavailable
from serving.jobs.artefacts import ArtefactStore
from serving.jobs.base import Lease
from serving.video.domain import VideoJob
from serving.video.names import folder
from serving.video.snapshots import snapshot_step


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedCheckpoint:
    """Where a checkpoint lies and how many steps it holds."""

    key: str
    step: int


class Checkpoints:
    """One per worker. Keys hold the lease's token: two attempts that overlap never write the same file."""

    def __init__(self, store: ArtefactStore) -> None:
        self._store = store
        self._last: dict[str, str] = {}

    async def save(self, job: VideoJob, lease: Lease, snapshot: bytes) -> SavedCheckpoint:
        """Write one, and remove the one before of this attempt."""
        step = snapshot_step(snapshot)
        key = f"{folder(job.id)}/checkpoint-{step}-{lease.token[:12]}.safetensors"
        await self._store.put(key, snapshot, "application/octet-stream")
        before = self._last.get(job.id)
        self._last[job.id] = key
        if before is not None and before != key:
            await self._store.delete(before)
        return SavedCheckpoint(key=key, step=step)

    async def load(self, job: VideoJob) -> bytes | None:
        """Read the one that the record names. None if it is not there any more: then the job begins anew."""
        assert job.checkpoint_key is not None
        try:
            return await self._store.read(job.checkpoint_key)
        except FileNotFoundError:
            return None

    async def drop(self, job: VideoJob, key: str | None) -> None:
        """The job is over: remove its last checkpoint. What cannot be removed now goes with the job's folder."""
        for one in {key, job.checkpoint_key, self._last.pop(job.id, None)} - {None}:
            with contextlib.suppress(StoreUnavailable):
                await self._store.delete(str(one))

    def forget(self, job_id: str) -> None:
        """The job has left this worker, to be gone on with elsewhere."""
        self._last.pop(job_id, None)
