"""States of running jobs in the shared store, so that a later attempt need not begin anew.

The store alone says which there are: an index that forgot the last second, or everything, costs no work. What is read
back was sealed for this very job (``serving.stores.sealed``), or is passed over.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from typing import Final

import msgspec
import structlog

from serving.errors import StoreUnavailable
from serving.replica.job.snapshots import snapshot_step
from serving.stores.artefacts import ArtefactStore
from serving.stores.jobs.base import JobRecord, Lease, folder
from serving.stores.sealed import Sealer

_log = structlog.get_logger(__name__)
_NAME: Final = re.compile(r"checkpoint-(\d{1,9})-[A-Za-z0-9]+\.safetensors")
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
