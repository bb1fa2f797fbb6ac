"""The job index in Redis: records, queues and leases. See ``base`` for the life of a job, ``scripts`` for how.

Unlike results and quotas, jobs never fail open: without Redis every method raises ``StoreUnavailable``. The connection
is therefore one of its own, with a timeout that a busy Redis can meet.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any
from urllib.parse import quote, unquote

import redis.asyncio as aioredis
import structlog
from redis.exceptions import NoScriptError

from schedulers.fair_queue import EQUAL, TURNS_BEHIND, Weights
from schedulers.types import Priority
from schedulers.urgency import queue_key
from serving.config import JobOptions, ResolvedConfig
from serving.errors import InvalidRequest, QueueFull, TooManyJobs, TooManyLatentBytes
from serving.stores.breaker import BreakerConfig, BreakerState
from serving.stores.connection import RedisConfig, RedisConnection
from serving.stores.jobs import keys
from serving.stores.jobs.base import (
    Artefact,
    Claim,
    JobError,
    JobPage,
    JobQueue,
    JobRecord,
    JobStatus,
    Lease,
    LeaseState,
    Progress,
)
from serving.stores.jobs.records import RecordCodec, Result, fields_of, progress_arguments
from serving.stores.jobs.scripts import (
    ALL,
    CANCEL,
    CLAIM,
    CREATE,
    DELETE,
    DISCARD,
    END,
    GET,
    LIST,
    QUEUED,
    RENEW,
    REQUEUE,
    UNSETTLED,
)
from serving.stores.scripts import Script
from serving.tenants import LiveTenants

_log = structlog.get_logger(__name__)
_FULL_RETRY_S = 5.0
_MAX_UNSETTLED = 100
_CALLED = b"*"
"""The flow of jobs that came back, as ``scripts`` spells it."""
_MIN_J = 1e-6
"""Even a job that is predicted to cost nothing takes a turn."""


def jobs_config(url: str, timeout_s: float = 2.0) -> RedisConfig:
    """The connection that jobs want: patient, and soon back after an outage, so that leases are kept."""
    return RedisConfig(url=url, timeout_s=timeout_s, breaker=BreakerConfig(failure_threshold=3, max_open_s=1.0))


class RedisJobs:
    """Use from one event loop; ``stop`` when done. Every method raises ``StoreUnavailable`` when Redis is away.

    ``secret``: gateways and replicas share it; what was sealed with another one is no job. ``max_open_per_owner``: jobs
    of one owner that are not over, where ``max_open`` has no bound for it; ``max_held``: bytes that these may hold
    together, of owners who have such a bound. ``max_attempts``: claims until a job fails.
    ``ttl_s``: how long jobs are kept that fail or are cancelled in the index itself. ``restart_grace_s``: for how long
    after its start Redis takes no lease away. ``weights``: owners' shares of what is claimed.

    Raises: ValueError: a number is out of range.
    """

    def __init__(
        self,
        config: RedisConfig,
        *,
        secret: bytes,
        max_open_per_owner: int = 64,
        max_attempts: int = 3,
        ttl_s: float = 24 * 3600.0,
        restart_grace_s: float = 5.0,
        weights: Weights = EQUAL,
        max_open: Mapping[str, int | None] = MappingProxyType({}),
        max_held: Mapping[str, int | None] = MappingProxyType({}),
    ) -> None:
        if max_open_per_owner < 1 or max_attempts < 1 or ttl_s <= 0 or restart_grace_s < 0:
            raise ValueError("max_open_per_owner, max_attempts, ttl_s must be positive, restart_grace_s not negative")
        self._connection = RedisConnection(config)
        self._codec = RecordCodec(secret)
        self._weights = weights
        self._max_open_per_owner = max_open_per_owner
        self._max_open = max_open
        self._max_held = max_held
        self._max_attempts = max_attempts
        self._ttl_ms = int(1000 * ttl_s)
        self._grace_s = restart_grace_s

    @property
    def breaker_state(self) -> BreakerState:
        """Where the breaker of the connection stands."""
        return self._connection.breaker_state

    async def start(self) -> bool:
        """Connect ahead of the first call. Returns whether Redis answered."""
        return await self._connection.warm_up([script.source for script in ALL])

    async def stop(self) -> None:
        """Close the connections."""
        await self._connection.stop()

    # -- for gateways ------------------------------------------------------------------------------------------------

    async def create(self, job: JobRecord, *, max_queued: int) -> None:
        """Store a queued job. The same id of the same owner again is the same job, and nothing is changed.

        Raises:
            QueueFull: the whole queue is at its bound.
            TooManyJobs, TooManyLatentBytes: that owner is.
            InvalidRequest: the job alone may hold more than its owner's may.
            ValueError: the id is another owner's, or the payload too large.
        """
        answer, earlier = await self._create(job, max_queued)
        if answer == b"exists" and self._read(job.id, earlier) is None:
            await self._run(DISCARD, job.id)
            answer, earlier = await self._create(job, max_queued)
        self._check_created(job, answer, earlier, max_queued)

    async def _create(self, job: JobRecord, max_queued: int) -> tuple[bytes, Any]:
        most_bytes = self._most_bytes(job)
        priority, joules = Priority[job.priority.upper()], max(_MIN_J, float(job.predicted_j))
        answer, earlier = await self._run(
            CREATE,
            job.id,
            _owner(job.owner),
            job.model,
            repr(job.created_at_s),
            repr(queue_key(priority, job.created_at_s, job.deadline_at_s, job.predicted_s)),
            int(1e6 * job.predicted_s),
            job.num_steps,
            max_queued,
            self._most_of(job.owner),
            self._codec.encode(job),
            repr(joules),
            repr(float(self._weights.get(job.owner, 1.0))),
            repr(float(job.elsewhere_j)),
            repr(TURNS_BEHIND * joules),
            job.held_bytes,
            "" if most_bytes is None else most_bytes,
        )
        return answer, earlier

    def _most_of(self, owner: str) -> int:
        return self._max_open.get(owner) or self._max_open_per_owner

    def _most_bytes(self, job: JobRecord) -> int | None:
        """Of its owner's jobs; None: any number. Raises: InvalidRequest: it never fits."""
        most = self._max_held.get(job.owner)
        if most is not None and job.held_bytes > most:
            message = f"this job may hold {job.held_bytes} bytes, and all of your jobs {most} (max_latent_bytes)"
            raise InvalidRequest(f"{message}; ask for something smaller")
        return most

    def _check_created(self, job: JobRecord, answer: bytes, earlier: Any, max_queued: int) -> None:
        if answer == b"full":
            message = f"{max_queued} jobs wait already, which is the limit; try again later"
            raise QueueFull(message, retry_after_s=_FULL_RETRY_S)
        if answer == b"owner_full":
            most = self._most_of(job.owner)
            message = f"{most} of your jobs are not over, which is the limit (max_jobs); wait or cancel one"
            raise TooManyJobs(message, retry_after_s=_FULL_RETRY_S)
        if answer == b"owner_bytes":
            message = (
                f"this job may hold {job.held_bytes} bytes; your jobs that are not over may hold {int(earlier)} of "
                f"{self._max_held.get(job.owner)} (max_latent_bytes); wait or cancel one"
            )
            raise TooManyLatentBytes(message, retry_after_s=_FULL_RETRY_S)
        if answer == b"exists" and self._read(job.id, earlier, job.owner) is None:
            raise ValueError(f"job id {job.id} is taken; choose ids at random")

    async def get(self, owner: str, job_id: str) -> JobRecord | None:
        """The job, if there is one of that id and it is the owner's; unknown and not-yours look the same."""
        return self._read(job_id, await self._run(GET, job_id), owner)

    async def list_jobs(
        self, owner: str, task: str, *, after: str | None, limit: int, newest_first: bool
    ) -> JobPage | None:
        """A page of the owner's jobs of a task, by creation. None: ``after`` names no job of the owner.

        Records that cannot be read are passed over.
        """
        found: list[JobRecord] = []
        cursor, wanted = after or "", limit + 1
        while len(found) < wanted:
            is_known, entries = await self._run(LIST, _owner(owner), cursor, wanted, int(newest_first))
            if not is_known and not found and cursor == (after or ""):
                return None
            ids = [bytes(job_id).decode() for job_id in entries[::2]]
            read = (self._read(job_id, reply, owner) for job_id, reply in zip(ids, entries[1::2], strict=True))
            found += [job for job in read if job is not None and job.task == task]
            if len(ids) < wanted:
                break
            cursor = ids[-1]
        return JobPage(jobs=tuple(found[:limit]), has_more=len(found) > limit)

    async def cancel(self, owner: str, job_id: str) -> JobRecord | None:
        """End a job that is not final (see ``base``); a final one is left as it is. None: no such job."""
        if await self.get(owner, job_id) is None:  # a job never changes hands: looking first is as good as at once
            return None
        reply = await self._run(CANCEL, job_id, self._max_attempts, self._ttl_ms, self._grace_s)
        return self._read(job_id, reply, owner)

    async def delete(self, owner: str, job_id: str) -> JobRecord | None:
        """Remove a final job. The caller deletes its artefacts. None: no such job, or not final."""
        if await self.get(owner, job_id) is None:
            return None
        return self._read(job_id, await self._run(DELETE, job_id, _owner(owner), uuid.uuid4().hex), owner)

    # -- for workers -------------------------------------------------------------------------------------------------

    async def claim(
        self, model: str, worker: str, lease_s: float, *, passing_over: Collection[str] = ()
    ) -> Claim | None:
        """Take the most urgent job of the owner whose turn it is, and put expired leases back first.
        ``passing_over``: owners whose jobs must wait, but for those that come back; they keep what they are owed.

        A job whose attempts are used up fails with code ``attempts_exhausted``. None: nothing to do.
        """
        token = uuid.uuid4().hex
        limits, passed = (self._max_attempts, self._ttl_ms, self._grace_s), map(_owner, passing_over)
        found, reply, *expired = await self._run(CLAIM, token, worker, int(1000 * lease_s), *limits, model, *passed)
        if any(expired):
            _log.warning("leases expired", **dict(zip(("requeued", "exhausted", "cancelled"), expired, strict=True)))
        if not found:
            return None
        job_id = bytes(found).decode()
        job = self._read(job_id, reply)
        if job is None or job.model != model:
            await self._run(DISCARD, job_id)
            return None
        return Claim(job=job, lease=Lease(job_id=job.id, token=token, worker=worker))

    async def renew(self, lease: Lease, lease_s: float, progress: Progress) -> LeaseState:
        """Keep a lease and report; one round trip."""
        arguments = (int(1000 * lease_s), *progress_arguments(progress))
        return LeaseState((await self._run(RENEW, lease.job_id, lease.token, *arguments)).decode())

    async def requeue(self, lease: Lease, progress: Progress, *, counts_as_attempt: bool) -> bool:
        """Give a job back: drain, preemption, a lost rank. Returns whether the lease was still held."""
        limits = (int(counts_as_attempt), self._max_attempts, self._ttl_ms)
        arguments = (*limits, *progress_arguments(progress))
        return bool(await self._run(REQUEUE, lease.job_id, lease.token, *arguments))

    async def complete(
        self, lease: Lease, artefacts: dict[str, Artefact], report: dict[str, object], ttl_s: float
    ) -> bool:
        """Done. Returns False, and changes nothing, if the lease was lost."""
        return await self._end(lease, Result(status=JobStatus.COMPLETED, artefacts=artefacts, report=report), ttl_s)

    async def fail(self, lease: Lease, error: JobError, report: dict[str, object], ttl_s: float) -> bool:
        """Over, with nothing made. Returns False, and changes nothing, if the lease was lost."""
        return await self._end(lease, Result(status=JobStatus.FAILED, error=error, report=report), ttl_s)

    async def _end(self, lease: Lease, result: Result, ttl_s: float) -> bool:
        sealed = self._codec.encode_result(lease.job_id, result)
        status, ttl_ms = result.status.value, max(1, int(1000 * ttl_s))
        taken_j = result.report.get("charged_j", result.report.get("energy_j", ""))
        return bool(await self._run(END, lease.job_id, lease.token, status, ttl_ms, taken_j, "result", sealed))

    # -- numbers -----------------------------------------------------------------------------------------------------

    async def num_queued(self, model: str) -> int:
        """Jobs that wait."""
        return int(await self._run(QUEUED, model))

    async def queue(self, model: str) -> JobQueue:
        """The work that waits. O(owners that have some)."""

        async def send(client: aioredis.Redis) -> dict[Any, Any]:
            return await client.hgetall(keys.load(model))

        loads = await self._connection.call("jobs.queue", send)
        called_s = int(loads.pop(_CALLED, 0)) / 1e6
        owners_s = {unquote(owner.decode()): int(us) / 1e6 for owner, us in loads.items()}
        return JobQueue(called_s=called_s, owners_s=owners_s, weights=self._weights)

    async def unsettled(self, older_than_s: float) -> dict[str, JobRecord | None]:
        """Some of the jobs that have been over for so long and that nobody has forgotten; None for what is no job."""
        entries = await self._run(UNSETTLED, int(1000 * older_than_s), _MAX_UNSETTLED)
        ids = [bytes(job_id).decode() for job_id in entries[::2]]
        return {job_id: self._read(job_id, reply) for job_id, reply in zip(ids, entries[1::2], strict=True)}

    async def forget_unsettled(self, job_id: str) -> None:
        """What it was charged is put right."""

        async def send(client: aioredis.Redis) -> None:
            await client.zrem(keys.unsettled(), job_id)

        await self._connection.call("jobs.forget_unsettled", send)

    async def has(self, job_id: str) -> bool:
        """Whether the index has that job, whoever owns it; for the clean-up of files."""
        return self._read(job_id, await self._run(GET, job_id)) is not None

    def _read(self, job_id: str, reply: Sequence[Any], owner: str | None = None) -> JobRecord | None:
        """None for an empty reply, for what somebody else wrote there, and for a job that is not the owner's."""
        if not reply:
            return None
        try:
            job = self._codec.decode(job_id, fields_of(reply))
        except ValueError as error:
            _log.warning("a record in Redis is no job of ours", job=job_id, reason=str(error)[:200])
            return None
        return job if owner in (None, job.owner) else None

    async def _run(self, script: Script, *arguments: str | bytes | float) -> Any:
        async def send(client: aioredis.Redis) -> Any:
            try:
                return await client.evalsha(script.sha1, 1, keys.JOBS, *arguments)
            except NoScriptError:  # first use, or the server lost it
                return await client.eval(script.source, 1, keys.JOBS, *arguments)

        return await self._connection.call(f"jobs.{_NAMES[script.sha1]}", send)


_NAMES = dict(
    zip(
        (script.sha1 for script in ALL),
        (
            "create",
            "get",
            "list",
            "cancel",
            "delete",
            "discard",
            "claim",
            "renew",
            "requeue",
            "end",
            "unsettled",
            "num_queued",
        ),
        strict=True,
    )
)


def build_index(config: ResolvedConfig, tenants: LiveTenants) -> RedisJobs:
    """The index of a configuration, the same for gateways and replicas. Not started."""
    jobs = config.settings.jobs
    return RedisJobs(
        jobs_config(config.store_url, jobs.redis_timeout_s),
        secret=config.secret.encode(),
        max_open_per_owner=jobs.max_queued_per_tenant,
        max_attempts=max((model.options.max_attempts for model in config.models_with(JobOptions)), default=3),
        ttl_s=jobs.ttl_s,
        weights=tenants.weights,
        max_open=tenants.view(lambda tenant: tenant.max_jobs),
        max_held=tenants.view(lambda tenant: tenant.max_latent_bytes),
    )


def _owner(owner: str) -> str:
    """As it stands in keys and entries: without a space."""
    return quote(owner, safe="")
