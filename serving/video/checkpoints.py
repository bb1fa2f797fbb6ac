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
        self._written: dict[str, list[str]] = {}

    async def save(self, job: VideoJob, lease: Lease, snapshot: bytes) -> SavedCheckpoint:
        """Write one. Those before it stay, for the index still names one of them."""
        step = snapshot_step(snapshot)
        key = f"{folder(job.id)}/checkpoint-{step}-{lease.token[:12]}.safetensors"
        await self._store.put(key, snapshot, "application/octet-stream")
        self._written.setdefault(job.id, []).append(key)
        return SavedCheckpoint(key=key, step=step)

    async def load(self, job: VideoJob) -> bytes | None:
        """Read the one that the record names. None if it is not there any more: then the job begins anew."""
        assert job.checkpoint_key is not None
        try:
            return await self._store.read(job.checkpoint_key)
        except FileNotFoundError:
            return None

    async def drop(self, job: VideoJob, *, but: str | None = None) -> None:
        """Remove what this worker wrote, and what it began from; all but the one that the index names now.

        What cannot be removed goes later, with the folder of the job.
        """
        written = self._written.pop(job.id, [])
        for key in {*written, job.checkpoint_key} - {None, but}:
            with contextlib.suppress(StoreUnavailable):
                await self._store.delete(str(key))
        if but is not None:
            self._written[job.id] = [but]

    def forget(self, job_id: str) -> None:
        """The job has left this worker, to be gone on with elsewhere."""
        self._written.pop(job_id, None)
