"""Corrects what jobs were charged that are over, whoever ended them and whatever died in between.

A job is charged its prediction when it is taken in, and whoever ends it corrects that at once. This comes after: for
jobs whose attempts were used up, which the index itself ends, and for those whose replica or gateway was lost between
the end and the correction. The index remembers every job until this is done; a correction is made once, however often
it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from serving.errors import StoreUnavailable
from serving.stores.jobs.base import JobRecord
from serving.stores.jobs.redis_jobs import RedisJobs
from serving.stores.periodic import Periodic
from serving.stores.results import ResultStore

_log = structlog.get_logger(__name__)


class JobSettler(Periodic):
    """A task of a gateway; several of them do no harm. ``stop`` when done.

    ``learn``: told of every job that is over. ``older_than_s``: for how long whoever ended one is given to correct it.

    Raises: ValueError: a number is not positive.
    """

    def __init__(
        self,
        index: RedisJobs,
        accounts: ResultStore,
        learn: Callable[[JobRecord], None] = lambda _job: None,
        *,
        every_s: float = 15.0,
        older_than_s: float = 10.0,
    ) -> None:
        if every_s <= 0 or older_than_s < 0:
            raise ValueError(f"every_s {every_s} must be positive, older_than_s {older_than_s} not negative")
        super().__init__(every_s)
        self._index = index
        self._accounts = accounts
        self._learn = learn
        self._older_than_s = older_than_s

    async def settle(self) -> int:
        """Look once. Returns how many jobs were looked at. Raises: StoreUnavailable: the rest stays for next time."""
        ended = await self._index.unsettled(self._older_than_s)
        for job_id, job in ended.items():
            if job is not None:  # else its record is gone, or is none of ours
                await self._accounts.correct_job(job.owner, job.id, job.charged, job.taken)
                self._learn(job)
            await self._index.forget_unsettled(job_id)
        return len(ended)

    async def _once(self) -> None:
        try:
            while await self.settle():
                pass
        except StoreUnavailable:
            return
        except Exception:
            _log.exception("correcting what jobs were charged failed")
