"""Work that a gateway does again and again, in a task of its own: among it, removing files that no job needs."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from typing import Protocol

import structlog

from serving.errors import StoreUnavailable
from serving.stores.artefacts import ArtefactStore


class Periodic(ABC):
    """``start`` it on the loop, ``stop`` it when done. ``every_s``: from the end of one time to the next."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, on the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """End. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        while self._task is not None:  # a client library may keep a cancellation to itself
            await asyncio.sleep(self._every_s)
            await self._once()

    @abstractmethod
    async def _once(self) -> None:
        """Do it. Must not raise: it would be done no more."""


_log = structlog.get_logger(__name__)
FOLDER = "jobs"
"""Below it lies one folder for each job, by its id."""
IMAGES, IMAGES_KEPT_S = "images", 3600.0
"""The same of pictures that are fetched by a URL, and how long they can be."""


class KnowsJobs(Protocol):
    """What is asked of the index: ``serving.stores.jobs.redis_jobs.RedisJobs``."""

    async def has(self, job_id: str) -> bool:
        """Whether there is such a job, whoever owns it. Raises: StoreUnavailable."""
        ...


async def _is_needed(_image: str) -> bool:
    return False


class ArtefactCleaner(Periodic):
    """A task of a gateway; several of them do no harm. ``stop`` when done. Pictures go when they have expired.

    ``every_s``: between two sweeps. ``older_than_s``: how long a folder must have been left alone before it is looked
    at, so that files whose record is just being written are not.

    Raises: ValueError: a number is not positive.
    """

    def __init__(
        self, store: ArtefactStore, index: KnowsJobs, *, every_s: float = 600.0, older_than_s: float = 3600.0
    ) -> None:
        if every_s <= 0 or older_than_s <= 0:
            raise ValueError(f"every_s {every_s} and older_than_s {older_than_s} must be positive")
        super().__init__(every_s)
        self._store = store
        self._index = index
        self._older_than_s = older_than_s

    async def sweep(self) -> int:
        """Look once. Returns of how many jobs and pictures files were removed.

        Raises: StoreUnavailable: nothing more was removed.
        """
        num_removed = await self._store.sweep(FOLDER, self._older_than_s, self._index.has)
        return num_removed + await self._store.sweep(IMAGES, max(IMAGES_KEPT_S, self._older_than_s), _is_needed)

    async def _once(self) -> None:
        try:
            num_removed = await self.sweep()
        except StoreUnavailable as error:
            _log.warning("files of jobs that are gone were not removed", error=error.message)
        except Exception:  # whatever it met, the rest of the store must not fill up for it
            _log.exception("looking for files of jobs that are gone failed")
        else:
            if num_removed:
                _log.info("removed files of jobs that are gone", jobs=num_removed)
