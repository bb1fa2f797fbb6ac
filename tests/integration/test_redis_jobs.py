"""The job index on a real Redis: every job is done once, whoever dies, and whatever answer is lost."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import pytest
import redis.asyncio as aioredis

from schedulers.admission import Cost
from serving.errors import InvalidRequest, QueueFull, StoreUnavailable, TooManyJobs, TooManyLatentBytes
from serving.stores.jobs import keys
from serving.stores.jobs.base import Claim, JobError, JobPage, JobRecord, JobStatus, LeaseState
from serving.stores.jobs.redis_jobs import RedisJobs, jobs_config
from serving.stores.jobs.settler import JobSettler
from serving.stores.redis_server import EmbeddedRedis
from tests.support.redis_server import REDIS_KINDS, embedded_redis, redis_of, stopped
from tests.support.video_jobs import CLIP, SECRET, progress, video_job
from tests.support.waiting import lapse, until

LONG_S = 60.0
SHORT_S = 0.1
TTL_S = 600.0


@pytest.fixture(scope="module", params=REDIS_KINDS)
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    with redis_of(request.param, is_persistent=True) as url:
        yield url


@pytest.fixture
async def client(url: str) -> AsyncIterator[aioredis.Redis]:
    client = aioredis.Redis.from_url(url)
    yield client
    await client.aclose()


@pytest.fixture
async def jobs(url: str, client: aioredis.Redis) -> AsyncIterator[RedisJobs]:
    await client.flushall()
    jobs = RedisJobs(jobs_config(url), secret=SECRET, max_open_per_owner=5, restart_grace_s=0.0)
    assert await jobs.start()
    yield jobs
    await jobs.stop()


async def claimed(jobs: RedisJobs, lease_s: float = LONG_S, worker: str = "w") -> Claim:
    claim = await jobs.claim("vdit-nano", worker, lease_s)
    assert claim is not None
    return claim


async def found(jobs: RedisJobs, job_id: str, owner: str = "acme") -> JobRecord:
    job = await jobs.get(owner, job_id)
    assert job is not None
    return job


async def nothing_left(client: aioredis.Redis) -> set[bytes]:
    """Keys that hold jobs that are not over, or claim to."""
    names = [key async for key in client.scan_iter(f"{keys.JOBS}:*")]
    kinds = (b":flow:", b":waiting", b":leases", b":open:", b":live")
    return {name for name in names if any(kind in name for kind in kinds)}


# -- life of a job ---------------------------------------------------------------------------------------------------


async def test_job_comes_back_as_it_was_created(jobs: RedisJobs) -> None:
    job = video_job("a", deadline_at_s=time.time() + 9, priority="high", prompt="ein „Ball“ \x00 \N{CAT FACE}")
    await jobs.create(job, max_queued=9)
    assert await found(jobs, "a") == job


async def test_claim_works_through_to_completion(jobs: RedisJobs) -> None:
    await jobs.create(video_job("a"), max_queued=9)
    claim = await claimed(jobs)
    assert (claim.job.status, claim.job.attempts, claim.lease.job_id) == (JobStatus.IN_PROGRESS, 1, "a")
    assert claim.job.started_at_s == pytest.approx(time.time(), abs=5)
    assert await jobs.claim("vdit-nano", "other", LONG_S) is None
    assert await jobs.renew(claim.lease, LONG_S, progress(4, preemptions=2)) is LeaseState.HELD
    running = await found(jobs, "a")
    assert (running.step, running.stage, running.remaining_s, running.preemptions) == (4, "denoise", 0.5, 2)
    assert await jobs.complete(claim.lease, CLIP, {"energy_j": 1.5, "stages_s": {"text": 0.1}}, TTL_S)
    done = await found(jobs, "a")
    assert (done.status, done.artefacts, done.remaining_s) == (JobStatus.COMPLETED, CLIP, None)
    assert done.report == {"energy_j": 1.5, "stages_s": {"text": 0.1}}
    assert done.completed_at_s is not None
    assert done.expires_at_s == pytest.approx(done.completed_at_s + TTL_S, abs=0.01)


async def test_failure_is_recorded(jobs: RedisJobs) -> None:
    await jobs.create(video_job("a"), max_queued=9)
    claim = await claimed(jobs)
    assert await jobs.fail(claim.lease, JobError(code="engine_failed", message="no"), {}, TTL_S)
    failed = await found(jobs, "a")
    assert (failed.status, failed.error) == (JobStatus.FAILED, JobError(code="engine_failed", message="no"))


async def test_nothing_but_records_is_left_of_jobs_that_are_over(jobs: RedisJobs, client: aioredis.Redis) -> None:
    for name in "abc":
        await jobs.create(video_job(name), max_queued=9)
    await jobs.complete((await claimed(jobs)).lease, CLIP, {}, TTL_S)
    await jobs.fail((await claimed(jobs)).lease, JobError(code="x", message="y"), {}, TTL_S)
    await jobs.cancel("acme", "c")
    assert await nothing_left(client) == set()
    assert (await jobs.queue("vdit-nano")).total_s == 0.0


async def test_unfinished_jobs_have_no_lifetime_and_final_ones_have(jobs: RedisJobs, client: aioredis.Redis) -> None:
    """The server evicts keys with a lifetime only (volatile-lru)."""
    for name in "ab":
        await jobs.create(video_job(name), max_queued=9)
    lease = (await claimed(jobs)).lease
    assert await client.pttl(keys.job("a")) == await client.pttl(keys.job("b")) == -1
    await jobs.complete(lease, CLIP, {}, TTL_S)
    assert 0 < await client.pttl(keys.job("a")) <= 1000 * TTL_S
    names = [key async for key in client.scan_iter(f"{keys.JOBS}:*")]
    mortal = {name for name in names if await client.pttl(name) != -1}
    assert {name.rsplit(b":", 2)[-2] for name in mortal} == {b"job", b"claim"}


async def test_expired_record_leaves_the_list_as_well(jobs: RedisJobs, client: aioredis.Redis) -> None:
    for name in "ab":
        await jobs.create(video_job(name), max_queued=9)
    await jobs.complete((await claimed(jobs)).lease, CLIP, {}, 0.05)
    await lapse(0.1)
    page = await jobs.list_jobs("acme", "videos", after=None, limit=9, newest_first=False)
    assert page is not None
    assert [job.id for job in page.jobs] == ["b"]
    assert await jobs.get("acme", "a") is None
    assert await client.zrange(f"{keys.JOBS}:owner:acme", 0, -1) == [b"b"]
    assert await client.zcard(f"{keys.JOBS}:ended") == 0


# -- order and bounds ------------------------------------------------------------------------------------------------


async def test_order_is_slack_within_priority_and_arrival_within_both(jobs: RedisJobs) -> None:
    now_s = time.time()
    made = [
        video_job("low", priority="low", created_at_s=now_s),
        video_job("second", created_at_s=now_s + 0.002),
        video_job("first", created_at_s=now_s + 0.001),
        video_job("soon", created_at_s=now_s + 0.003, deadline_at_s=now_s + 60),
        video_job("high", priority="high", created_at_s=now_s + 0.004),
    ]
    for job in made:
        await jobs.create(job, max_queued=9)
    order = [(await claimed(jobs)).job.id for _ in made]
    assert order == ["soon", "high", "first", "second", "low"]


async def test_claim_takes_only_jobs_of_the_model(jobs: RedisJobs) -> None:
    for model in ("x", "timm:y", "z"):
        await jobs.create(video_job(model, model=model), max_queued=9)
    claims = [await jobs.claim(model, "w", LONG_S) for model in ("z", "timm:y", "z")]
    assert [claim.job.id if claim else None for claim in claims] == ["z", "timm:y", None]
    assert [await jobs.num_queued(model) for model in ("x", "timm:y", "z")] == [1, 0, 0]


async def test_queue_is_bounded_as_a_whole_and_per_owner(jobs: RedisJobs) -> None:
    for number in range(5):
        await jobs.create(video_job(f"a{number}"), max_queued=9)
    with pytest.raises(TooManyJobs, match="5 of your jobs"):
        await jobs.create(video_job("a5"), max_queued=9)
    with pytest.raises(QueueFull, match="5 jobs wait"):
        await jobs.create(video_job("b", owner="other"), max_queued=5)
    await claimed(jobs)
    await jobs.create(video_job("b", owner="other"), max_queued=5)  # one less waits
    with pytest.raises(TooManyJobs, match="of your jobs"):
        await jobs.create(video_job("a5"), max_queued=9)  # the claimed one is not over
    await jobs.cancel("acme", "a4")
    await jobs.create(video_job("a5"), max_queued=9)


async def test_owner_with_a_bound_of_its_own_has_that_one_whatever_it_is_by_then(
    url: str, client: aioredis.Redis
) -> None:
    bounds: dict[str, int | None] = {"small": 1, "usual": None}
    jobs = RedisJobs(jobs_config(url), secret=SECRET, max_open_per_owner=2, max_open=bounds)
    await jobs.create(video_job("small1", owner="small"), max_queued=99)
    with pytest.raises(TooManyJobs, match=r"1 of your jobs .* \(max_jobs\)"):
        await jobs.create(video_job("small2", owner="small"), max_queued=99)
    bounds["small"] = 2
    await jobs.create(video_job("small2", owner="small"), max_queued=99)
    for owner in ("usual", "unknown"):
        await jobs.create(video_job(f"{owner}1", owner=owner), max_queued=99)
        await jobs.create(video_job(f"{owner}2", owner=owner), max_queued=99)
        with pytest.raises(TooManyJobs, match="2 of your jobs"):
            await jobs.create(video_job(f"{owner}3", owner=owner), max_queued=99)
    await jobs.stop()


async def test_bytes_of_an_owners_jobs_are_bounded_until_they_are_over(url: str, client: aioredis.Redis) -> None:
    await client.flushall()
    bounds: dict[str, int | None] = {"small": 100, "usual": None}
    jobs = RedisJobs(jobs_config(url), secret=SECRET, max_held=bounds, restart_grace_s=0.0)

    def job(name: str, held_bytes: int, owner: str = "small") -> JobRecord:
        return replace(video_job(name, owner=owner), held_bytes=held_bytes)

    async def refuses(held_bytes: int, taken: int) -> None:
        with pytest.raises(TooManyLatentBytes, match=rf"may hold {taken} of 100 \(max_latent_bytes\)"):
            await jobs.create(job("more", held_bytes), max_queued=99)

    with pytest.raises(InvalidRequest, match=r"may hold 101 bytes, and all of your jobs 100 \(max_latent_bytes\)"):
        await jobs.create(job("huge", 101), max_queued=99)
    await jobs.create(job("a", 60), max_queued=99)
    await jobs.create(job("b", 40), max_queued=99)
    await jobs.create(job("a", 60), max_queued=99)  # sent again, it is the same job
    await refuses(1, 100)
    for owner in ("usual", "unknown"):
        await jobs.create(job(owner, 1 << 50, owner), max_queued=99)
    first = await claimed(jobs)
    await refuses(41, 100)  # the one that runs is not over
    assert await jobs.requeue(first.lease, progress(1), counts_as_attempt=False)
    await refuses(1, 100)
    again = await claimed(jobs)
    assert await jobs.complete(again.lease, CLIP, {}, TTL_S)
    await refuses(61, 40)
    await jobs.create(job("c", 60), max_queued=99)
    await jobs.cancel("small", "b")
    await jobs.create(job("d", 40), max_queued=99)
    bounds["small"] = 99
    with pytest.raises(TooManyLatentBytes, match="of 99"):
        await jobs.create(job("e", 1), max_queued=99)
    await client.hset(keys.job("d"), "held", b"junk")
    await jobs.create(job("e", 39), max_queued=99)  # a damaged number counts for nothing, and stops nobody
    await jobs.stop()


async def test_predicted_work_of_the_queue_is_exact_after_anything(jobs: RedisJobs) -> None:
    chance = random.Random(1)
    for number in range(5):
        await jobs.create(video_job(f"j{number}", predicted_s=chance.uniform(0.1, 9)), max_queued=9)
    total_s = sum([(await found(jobs, f"j{number}")).predicted_s for number in range(5)])
    assert (await jobs.queue("vdit-nano")).total_s == pytest.approx(total_s, abs=1e-5)
    claim = await claimed(jobs)
    assert (await jobs.queue("vdit-nano")).total_s == pytest.approx(total_s - claim.job.predicted_s, abs=1e-5)
    await jobs.requeue(claim.lease, progress(4, checkpoint_step=4), counts_as_attempt=True)
    left_s = total_s - 0.4 * claim.job.predicted_s  # 4 of 10 steps are in the checkpoint
    assert (await jobs.queue("vdit-nano")).total_s == pytest.approx(left_s, abs=1e-5)
    for number in range(5):
        await jobs.cancel("acme", f"j{number}")
    assert (await jobs.queue("vdit-nano")).total_s == 0.0


# -- owners ----------------------------------------------------------------------------------------------------------


async def test_job_of_somebody_else_looks_like_none(jobs: RedisJobs) -> None:
    await jobs.create(video_job("a"), max_queued=9)
    for owner in ("acm", "acme ", "", "acme:open", "*"):
        assert await jobs.get(owner, "a") is None
        assert await jobs.cancel(owner, "a") is None
        assert await jobs.delete(owner, "a") is None
        assert await jobs.list_jobs(owner, "videos", after="a", limit=5, newest_first=True) is None
        assert await jobs.list_jobs(owner, "videos", after=None, limit=5, newest_first=True) == JobPage(
            jobs=(), has_more=False
        )
    assert (await found(jobs, "a")).status is JobStatus.QUEUED
    with pytest.raises(ValueError, match="taken"):
        await jobs.create(video_job("a", owner="other"), max_queued=9)


async def test_owners_of_any_spelling_are_kept_apart(jobs: RedisJobs) -> None:
    owners = ["a b", "a", "{jobs}", "ä\n", "a:b"]
    for number, owner in enumerate(owners):
        await jobs.create(video_job(f"j{number}", owner=owner), max_queued=9)
    for number, owner in enumerate(owners):
        page = await jobs.list_jobs(owner, "videos", after=None, limit=9, newest_first=True)
        assert page is not None
        assert [job.id for job in page.jobs] == [f"j{number}"]
        done = await jobs.cancel(owner, f"j{number}")
        assert done is not None
        assert done.owner == owner


async def test_pages_follow_one_another_in_both_directions(jobs: RedisJobs) -> None:
    now_s = time.time()
    for number in range(5):
        await jobs.create(video_job(f"j{number}", created_at_s=now_s + number), max_queued=9)
    for newest_first in (True, False):
        expected = sorted((f"j{number}" for number in range(5)), reverse=newest_first)
        seen: list[str] = []
        after = None
        while True:
            page = await jobs.list_jobs("acme", "videos", after=after, limit=2, newest_first=newest_first)
            assert page is not None
            seen += [job.id for job in page.jobs]
            if not page.has_more:
                break
            after = seen[-1]
        assert seen == expected


async def test_page_that_is_just_full_is_the_last(jobs: RedisJobs) -> None:
    for name in "ab":
        await jobs.create(video_job(name), max_queued=9)
    pages = [await jobs.list_jobs("acme", "videos", after=None, limit=limit, newest_first=True) for limit in (1, 2, 3)]
    assert [(len(page.jobs), page.has_more) for page in pages if page] == [(1, True), (2, False), (2, False)]


async def test_cursor_that_names_no_job_is_told_from_an_empty_page(jobs: RedisJobs) -> None:
    await jobs.create(video_job("a"), max_queued=9)
    await jobs.cancel("acme", "a")
    last = await jobs.list_jobs("acme", "videos", after="a", limit=5, newest_first=True)
    assert last == JobPage(jobs=(), has_more=False)
    await jobs.delete("acme", "a")
    assert await jobs.list_jobs("acme", "videos", after="a", limit=5, newest_first=True) is None
    assert await jobs.list_jobs("acme", "videos", after="never", limit=5, newest_first=True) is None


# -- cancel and delete -----------------------------------------------------------------------------------------------


async def test_cancel_ends_a_waiting_job_at_once(jobs: RedisJobs) -> None:
    await jobs.create(video_job("a"), max_queued=9)
    job = await jobs.cancel("acme", "a")
    assert job is not None
    assert job.error is not None
    assert (job.status, job.error.code) == (JobStatus.FAILED, "cancelled")
    assert await jobs.claim("vdit-nano", "w", LONG_S) is None
    assert await jobs.cancel("acme", "a") == job


async def test_cancel_of_a_running_job_reaches_its_worker(jobs: RedisJobs) -> None:
    await jobs.create(video_job("a"), max_queued=9)
    lease = (await claimed(jobs)).lease
    job = await jobs.cancel("acme", "a")
    assert job is not None
    assert job.status is JobStatus.IN_PROGRESS
    assert await jobs.renew(lease, LONG_S, progress(1)) is LeaseState.CANCELLED
    assert await jobs.fail(lease, JobError(code="cancelled", message="m"), {}, TTL_S)
    assert (await found(jobs, "a")).status is JobStatus.FAILED


@pytest.mark.parametrize("how", ["requeue", "expiry"])
async def test_cancelled_job_does_not_come_back_into_the_queue(jobs: RedisJobs, how: str) -> None:
    await jobs.create(video_job("a"), max_queued=9)
    lease = (await claimed(jobs, SHORT_S)).lease
    await jobs.cancel("acme", "a")
    if how == "requeue":
        assert await jobs.requeue(lease, progress(1), counts_as_attempt=False)
    else:
        await lapse(2 * SHORT_S)
    assert await jobs.claim("vdit-nano", "w", LONG_S) is None
    job = await found(jobs, "a")
    assert job.error is not None
    assert job.error.code == "cancelled"


async def test_only_final_jobs_are_deleted(jobs: RedisJobs) -> None:
    await jobs.create(video_job("a"), max_queued=9)
    assert await jobs.delete("acme", "a") is None
    lease = (await claimed(jobs)).lease
    assert await jobs.delete("acme", "a") is None
    await jobs.complete(lease, CLIP, {}, TTL_S)
    assert await jobs.has("a")
    deleted = await jobs.delete("acme", "a")
    assert deleted is not None
    assert deleted.artefacts == CLIP
    assert await jobs.get("acme", "a") is None
    assert await jobs.delete("acme", "a") is None
    assert not await jobs.has("a")


# -- leases ----------------------------------------------------------------------------------------------------------


async def test_expired_lease_gives_the_job_to_another_who_resumes_it(jobs: RedisJobs) -> None:
    await jobs.create(video_job("a"), max_queued=9)
    lost = (await claimed(jobs, SHORT_S, "first")).lease
    assert await jobs.renew(lost, SHORT_S, progress(7, checkpoint_step=5)) is LeaseState.HELD
    await lapse(2 * SHORT_S)
    claim = await claimed(jobs, LONG_S, "second")
    assert (claim.job.attempts, claim.job.step, claim.job.checkpoint_step) == (2, 5, 5)
    # whoever lost it changes nothing any more
    assert await jobs.renew(lost, LONG_S, progress(9)) is LeaseState.LOST
    assert not await jobs.complete(lost, {}, {}, TTL_S)
    assert not await jobs.fail(lost, JobError(code="x", message="y"), {}, TTL_S)
    assert not await jobs.requeue(lost, progress(0), counts_as_attempt=True)
    assert (await found(jobs, "a")).step == 5
    assert await jobs.complete(claim.lease, CLIP, {}, TTL_S)


async def test_renewed_lease_outlives_its_first_length(jobs: RedisJobs) -> None:
    await jobs.create(video_job("a"), max_queued=9)
    lease = (await claimed(jobs, SHORT_S)).lease
    await jobs.renew(lease, LONG_S, progress(1))
    await lapse(2 * SHORT_S)
    assert await jobs.claim("vdit-nano", "other", LONG_S) is None


async def test_late_holder_keeps_a_job_that_nobody_took(jobs: RedisJobs) -> None:
    await jobs.create(video_job("a"), max_queued=9)
    lease = (await claimed(jobs, SHORT_S)).lease
    await lapse(2 * SHORT_S)
    assert await jobs.renew(lease, LONG_S, progress(1)) is LeaseState.HELD
    assert await jobs.claim("vdit-nano", "other", LONG_S) is None


async def test_attempts_are_used_up(jobs: RedisJobs) -> None:
    await jobs.create(video_job("a"), max_queued=9)
    for attempt in range(3):
        assert (await claimed(jobs, SHORT_S)).job.attempts == attempt + 1
        await lapse(2 * SHORT_S)
    assert await jobs.claim("vdit-nano", "w", LONG_S) is None
    job = await found(jobs, "a")
    assert job.error is not None
    assert (job.status, job.error.code) == (JobStatus.FAILED, "attempts_exhausted")


async def test_drain_burns_no_attempt_and_a_failure_does(jobs: RedisJobs) -> None:
    await jobs.create(video_job("a"), max_queued=9)
    for _ in range(5):
        claim = await claimed(jobs)
        assert claim.job.attempts == 1
        assert await jobs.requeue(claim.lease, progress(2, checkpoint_step=2), counts_as_attempt=False)
    for attempt in (1, 2, 3):
        claim = await claimed(jobs)
        assert (claim.job.attempts, claim.job.checkpoint_step) == (attempt, 2)
        assert await jobs.requeue(claim.lease, progress(2, checkpoint_step=2), counts_as_attempt=True)
    assert (await found(jobs, "a")).status is JobStatus.FAILED


async def test_requeued_job_keeps_its_place(jobs: RedisJobs) -> None:
    now_s = time.time()
    for number in range(3):
        await jobs.create(video_job(f"j{number}", created_at_s=now_s + number), max_queued=9)
    claim = await claimed(jobs)
    await jobs.requeue(claim.lease, progress(0), counts_as_attempt=False)
    assert (await claimed(jobs)).job.id == "j0"


async def test_racing_workers_never_get_the_same_job(url: str, jobs: RedisJobs) -> None:
    for owner in range(8):
        for number in range(5):
            await jobs.create(video_job(f"j{owner}-{number}", owner=f"o{owner}"), max_queued=99)
    others = [RedisJobs(jobs_config(url), secret=SECRET, restart_grace_s=0.0) for _ in range(4)]

    async def work(index: RedisJobs, name: str) -> list[str]:
        done = []
        while (claim := await index.claim("vdit-nano", name, LONG_S)) is not None:
            assert await index.complete(claim.lease, {}, {}, TTL_S)
            done.append(claim.job.id)
        return done

    shares = await asyncio.gather(*(work(index, f"w{number}") for number, index in enumerate(others)))
    for index in others:
        await index.stop()
    done = [job_id for share in shares for job_id in share]
    assert len(done) == len(set(done)) == 40
    assert sum(bool(share) for share in shares) > 1


# -- answers that are lost -------------------------------------------------------------------------------------------


class Forgetful:
    """A client on which every script runs twice: the first answer is lost."""

    def __init__(self, client: aioredis.Redis) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def evalsha(self, *arguments: Any) -> Any:
        await self._client.evalsha(*arguments)
        return await self._client.evalsha(*arguments)


@pytest.fixture
def forgetful(jobs: RedisJobs, monkeypatch: pytest.MonkeyPatch) -> RedisJobs:
    plain = jobs._connection.call

    async def call(operation: str, send: Callable[[Any], Awaitable[Any]]) -> Any:
        return await plain(operation, lambda client: send(Forgetful(client)))

    monkeypatch.setattr(jobs._connection, "call", call)
    return jobs


async def test_every_script_may_be_sent_again(forgetful: RedisJobs, client: aioredis.Redis) -> None:
    jobs = forgetful
    for name in "abcd":
        await jobs.create(video_job(name, predicted_s=1.0), max_queued=4)
    assert await jobs.num_queued("vdit-nano") == 4
    a = await claimed(jobs)
    assert (a.job.id, a.job.attempts) == ("a", 1)
    assert await jobs.num_queued("vdit-nano") == 3
    assert await jobs.renew(a.lease, LONG_S, progress(1)) is LeaseState.HELD
    assert await jobs.requeue(a.lease, progress(1), counts_as_attempt=True)
    a = await claimed(jobs)
    assert (a.job.id, a.job.attempts) == ("a", 2)
    assert await jobs.complete(a.lease, CLIP, {}, TTL_S)
    b = await claimed(jobs)
    assert await jobs.fail(b.lease, JobError(code="x", message="y"), {}, TTL_S)
    c = await jobs.cancel("acme", "c")
    assert c is not None
    assert c.error is not None
    deleted = await jobs.delete("acme", "a")
    assert deleted is not None
    assert deleted.artefacts == CLIP
    assert (await jobs.queue("vdit-nano")).total_s == 1.0
    await jobs.complete((await claimed(jobs)).lease, {}, {}, TTL_S)
    assert await nothing_left(client) == set()


async def test_create_again_is_the_same_job_even_when_it_is_full_by_now(jobs: RedisJobs) -> None:
    job = video_job("a")
    await jobs.create(job, max_queued=1)
    await jobs.create(replace(job, predicted_s=9.0), max_queued=1)
    assert await found(jobs, "a") == job
    await claimed(jobs)
    await jobs.create(job, max_queued=1)
    assert (await found(jobs, "a")).status is JobStatus.IN_PROGRESS


async def test_id_of_a_deleted_job_is_free_at_once(jobs: RedisJobs) -> None:
    """Ids follow from idempotency keys."""
    await jobs.create(video_job("a"), max_queued=9)
    await jobs.cancel("acme", "a")
    await jobs.delete("acme", "a")
    job = video_job("a")
    await jobs.create(job, max_queued=9)
    assert await found(jobs, "a") == job


# -- what somebody else wrote ----------------------------------------------------------------------------------------


async def test_owner_that_somebody_rewrote_gives_the_job_to_nobody_else(
    jobs: RedisJobs, client: aioredis.Redis
) -> None:
    await jobs.create(video_job("a"), max_queued=9)
    await jobs.complete((await claimed(jobs)).lease, CLIP, {}, TTL_S)
    await client.hset(keys.job("a"), "owner", "rival")
    await client.zadd(f"{keys.JOBS}:owner:rival", {"a": 1.0})
    assert await jobs.get("rival", "a") is None
    assert await jobs.cancel("rival", "a") is None
    assert await jobs.delete("rival", "a") is None
    assert await jobs.list_jobs("rival", "videos", after=None, limit=9, newest_first=True) == JobPage(
        jobs=(), has_more=False
    )
    assert (await found(jobs, "a")).artefacts == CLIP


@pytest.mark.parametrize("name", ["record", "result"])
async def test_what_was_sealed_for_another_job_is_not_taken(jobs: RedisJobs, client: aioredis.Redis, name: str) -> None:
    """Or a tenant could be shown another's prompt, or fetch another's files."""
    for job_id, owner in (("a", "acme"), ("b", "rival")):
        await jobs.create(video_job(job_id, owner=owner), max_queued=9)
        await jobs.complete((await claimed(jobs)).lease, CLIP, {}, TTL_S)
    theirs = await client.hget(keys.job("a"), name)
    await client.hset(keys.job("b"), name, theirs)
    assert await jobs.get("rival", "b") is None
    assert await jobs.get("acme", "b") is None


@pytest.mark.parametrize("change", [{"status": "completed"}, {"status": "failed"}, {"status": "?"}, {"step": "11"}])
async def test_state_that_no_worker_reported_is_no_job(
    jobs: RedisJobs, client: aioredis.Redis, change: dict[str, str]
) -> None:
    await jobs.create(video_job("a"), max_queued=9)
    await claimed(jobs)
    await client.hset(keys.job("a"), mapping=change)
    assert await jobs.get("acme", "a") is None


async def test_jobs_of_another_deployment_are_none(url: str, jobs: RedisJobs) -> None:
    await jobs.create(video_job("a"), max_queued=9)
    stranger = RedisJobs(jobs_config(url), secret=b"t" * 32)
    assert await stranger.get("acme", "a") is None
    await stranger.stop()


Damage = Callable[[aioredis.Redis, str], Awaitable[Any]]


async def _as_string(client: aioredis.Redis, key: str) -> None:
    await client.set(key, "junk")


def _field(name: str, value: bytes) -> Damage:
    return lambda client, key: client.hset(key, name, value)


DAMAGES: dict[str, Damage] = {
    "record is junk": _field("record", b"\x80junk"),
    "record is empty": _field("record", b""),
    "record without a seal": _field("record", msgspec.json.encode(video_job("a"))),
    "steps are no number": _field("steps", b"many"),
    "attempts are nan": _field("attempts", b"nan"),
    "key is nan": _field("key", b"nan"),
    "steps are missing": lambda client, key: client.hdel(key, "steps"),
    "another type": _as_string,
    "gone": lambda client, key: client.delete(key),
}


@pytest.mark.parametrize("state", ["queued", "in_progress"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
async def test_damaged_record_harms_nobody_else_and_leaves_nothing(
    jobs: RedisJobs, client: aioredis.Redis, damage: Damage, state: str
) -> None:
    now_s = time.time()
    await jobs.create(video_job("a", created_at_s=now_s), max_queued=9)
    if state == "in_progress":
        await claimed(jobs, SHORT_S)
    await jobs.create(video_job("b", created_at_s=now_s + 1), max_queued=9)
    await damage(client, keys.job("a"))
    if state == "in_progress":
        await lapse(2 * SHORT_S)
    is_read = {name for name in ("steps are no number", "steps are missing", "key is nan") if DAMAGES[name] is damage}
    if not is_read:  # those fields are the scripts' own: without them the job cannot be scheduled, but be shown
        assert await jobs.get("acme", "a") is None
        assert await jobs.cancel("acme", "a") is None
        assert not await jobs.has("a")
        page = await jobs.list_jobs("acme", "videos", after=None, limit=9, newest_first=True)
        assert page is not None
        assert [job.id for job in page.jobs] == ["b"]
    claims = [await jobs.claim("vdit-nano", "w", LONG_S) for _ in range(4)]
    assert [claim.job.id for claim in claims if claim is not None] == ["b"]
    assert await jobs.complete(next(claim for claim in claims if claim).lease, CLIP, {}, TTL_S)
    assert (await jobs.queue("vdit-nano")).total_s == 0.0
    assert await nothing_left(client) == set()
    assert await jobs.get("acme", "a") is None


async def test_page_of_damaged_records_does_not_end_the_list(jobs: RedisJobs, client: aioredis.Redis) -> None:
    now_s = time.time()
    for number in range(5):
        await jobs.create(video_job(f"j{number}", created_at_s=now_s + number), max_queued=9)
    for number in (1, 2, 3):
        await client.hset(keys.job(f"j{number}"), "record", b"junk")
    page = await jobs.list_jobs("acme", "videos", after=None, limit=1, newest_first=False)
    assert page is not None
    assert ([job.id for job in page.jobs], page.has_more) == (["j0"], True)
    page = await jobs.list_jobs("acme", "videos", after="j0", limit=1, newest_first=False)
    assert page is not None
    assert ([job.id for job in page.jobs], page.has_more) == (["j4"], False)


async def test_id_that_a_damaged_record_holds_is_given_anew(jobs: RedisJobs, client: aioredis.Redis) -> None:
    """Ids follow from idempotency keys: the key must not be lost with the record."""
    await jobs.create(video_job("a"), max_queued=9)
    await client.hset(keys.job("a"), mapping={"record": b"junk", "owner": "rival"})
    job = video_job("a")
    await jobs.create(job, max_queued=9)
    assert await found(jobs, "a") == job
    assert (await claimed(jobs)).job.id == "a"


async def test_flushed_redis_forgets_every_job_and_goes_on(jobs: RedisJobs, client: aioredis.Redis) -> None:
    for name in "abc":
        await jobs.create(video_job(name), max_queued=9)
    lease = (await claimed(jobs)).lease
    await client.flushall()
    assert [await jobs.get("acme", name) for name in "abc"] == [None] * 3
    assert not await jobs.has("a")
    assert await jobs.renew(lease, LONG_S, progress(3)) is LeaseState.LOST
    assert not await jobs.complete(lease, CLIP, {}, TTL_S)
    assert not await jobs.requeue(lease, progress(3), counts_as_attempt=True)
    assert await client.keys(f"{keys.JOBS}:*") == []
    await jobs.create(video_job("a"), max_queued=1)
    assert (await claimed(jobs)).job.attempts == 1


# -- outages ---------------------------------------------------------------------------------------------------------


async def test_killed_redis_comes_back_with_every_job_and_lease() -> None:
    """Everything that was answered is there, and the holders of leases keep theirs."""
    with embedded_redis(is_persistent=True) as server:
        jobs = RedisJobs(jobs_config(server.url), secret=SECRET, restart_grace_s=5.0)
        await jobs.start()
        now_s = time.time()
        for number in range(4):
            await jobs.create(video_job(f"j{number}", created_at_s=now_s + number), max_queued=9)
        done, running = await claimed(jobs), await claimed(jobs, SHORT_S)
        await jobs.complete(done.lease, CLIP, {}, TTL_S)
        await jobs.renew(running.lease, SHORT_S, progress(6, checkpoint_step=5))
        await _kill(server)

        async def answers() -> bool:
            try:
                return await jobs.get("acme", "j0") is not None
            except StoreUnavailable:
                return False

        await until(answers)
        assert server.num_restarts == 1
        assert (await found(jobs, "j0")).status is JobStatus.COMPLETED
        assert (await found(jobs, "j0")).artefacts == CLIP
        assert await jobs.num_queued("vdit-nano") == 2
        assert (await jobs.queue("vdit-nano")).total_s == 4.0
        # its lease ran out while Redis was away: the grace after the start leaves it to whoever had it
        assert (await claimed(jobs)).job.id == "j2"
        assert await jobs.renew(running.lease, LONG_S, progress(7, checkpoint_step=5)) is LeaseState.HELD
        assert (await claimed(jobs)).job.id == "j3"
        assert await jobs.complete(running.lease, CLIP, {}, TTL_S)
        await jobs.stop()


async def _kill(server: EmbeddedRedis) -> None:
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)

    async def is_another() -> bool:
        return server.pid not in (None, pid) and server.is_alive()

    await until(is_another)


async def test_workers_lose_and_repeat_nothing_while_redis_is_killed() -> None:
    with embedded_redis(is_persistent=True) as server:
        config = jobs_config(server.url)
        jobs = RedisJobs(config, secret=SECRET, restart_grace_s=1.0)
        await jobs.start()
        for number in range(30):
            await jobs.create(video_job(f"j{number}"), max_queued=99)
        finished: list[str] = []

        async def persist(call: Callable[[], Awaitable[Any]]) -> Any:
            while True:
                try:
                    return await call()
                except StoreUnavailable:
                    await lapse(0.02)

        async def work(name: str) -> None:
            while len(finished) < 30:
                claim = await persist(lambda: jobs.claim("vdit-nano", name, 1.0))
                if claim is None:
                    await lapse(0.02)
                    continue
                await lapse(0.02)
                lease = claim.lease
                if await persist(lambda lease=lease: jobs.complete(lease, {}, {}, TTL_S)):
                    finished.append(claim.job.id)

        async def assassin() -> None:
            await until(lambda: finished)
            await _kill(server)

        await asyncio.gather(work("one"), work("two"), assassin())
        assert sorted(finished) == sorted(f"j{number}" for number in range(30))
        await jobs.stop()


async def test_silent_redis_is_reported_in_time_and_never_as_no_job() -> None:
    with embedded_redis(is_persistent=True) as server:
        jobs = RedisJobs(jobs_config(server.url, timeout_s=0.1), secret=SECRET)
        await jobs.start()
        await jobs.create(video_job("a"), max_queued=9)
        with stopped(server):
            for call in (
                lambda: jobs.get("acme", "a"),
                lambda: jobs.create(video_job("b"), max_queued=9),
                lambda: jobs.claim("vdit-nano", "w", LONG_S),
                lambda: jobs.num_queued("vdit-nano"),
            ):
                with pytest.raises(StoreUnavailable):
                    await call()

        async def answers() -> bool:
            try:
                return await jobs.get("acme", "a") is not None
            except StoreUnavailable:
                return False

        await until(answers)
        await jobs.stop()


async def test_server_that_keeps_its_age_to_itself_still_gives_jobs_of_the_dead_away() -> None:
    with embedded_redis() as server:
        async with aioredis.Redis.from_url(server.url) as admin:
            await admin.execute_command("ACL", "SETUSER", "default", "-info")
        jobs = RedisJobs(jobs_config(server.url), secret=SECRET, restart_grace_s=600.0)
        await jobs.create(video_job("a"), max_queued=9)
        await claimed(jobs, SHORT_S)
        await lapse(2 * SHORT_S)
        assert (await claimed(jobs)).job.attempts == 2
        await jobs.stop()


# -- what jobs were charged --------------------------------------------------------------------------------------------


@dataclass
class Accounts:
    corrected: dict[str, Cost] = field(default_factory=dict)
    is_away: bool = False

    async def correct_job(self, tenant: str, job_id: str, charged: Cost, actual: Cost) -> None:
        if self.is_away:
            raise StoreUnavailable("away")
        assert (tenant, charged) == ("acme", Cost(12.0, 2.0))
        assert job_id not in self.corrected
        self.corrected[job_id] = actual


async def test_every_job_that_is_over_is_corrected_once_whoever_ended_it(jobs: RedisJobs) -> None:
    """Completed and not heard of again; attempts used up; cancelled before anybody began, and after a checkpoint."""
    for number, job_id in enumerate(("done", "lost", "unwanted", "halfway", "runs")):
        await jobs.create(video_job(job_id, created_at_s=float(number)), max_queued=9)
    claim = await claimed(jobs)
    assert claim.job.id == "done"
    assert await jobs.complete(claim.lease, {}, {"energy_j": 3.0, "compute_ms": 500.0}, TTL_S)
    for _ in range(3):
        assert (await claimed(jobs, SHORT_S)).job.id == "lost"
        await lapse(2 * SHORT_S)
    assert await jobs.cancel("acme", "unwanted") is not None
    claim = await claimed(jobs)
    assert claim.job.id == "halfway"
    assert await jobs.requeue(claim.lease, progress(5, checkpoint_step=5), counts_as_attempt=False)
    assert await jobs.cancel("acme", "halfway") is not None
    assert (await claimed(jobs)).job.id == "runs"

    accounts = Accounts(is_away=True)
    settler = JobSettler(jobs, accounts, older_than_s=0.0)
    await lapse(0.01)
    with pytest.raises(StoreUnavailable):
        await settler.settle()
    accounts.is_away = False
    assert await settler.settle() == 4
    assert accounts.corrected == {
        "done": Cost(3.0, 0.5), "lost": Cost(0.0, 0.0), "unwanted": Cost(0.0, 0.0), "halfway": Cost(6.0, 1.0),
    }  # fmt: skip
    assert await settler.settle() == 0


async def test_whoever_ended_a_job_is_given_time_to_correct_it_and_one_that_is_gone_is_forgotten(
    jobs: RedisJobs, client: aioredis.Redis
) -> None:
    await jobs.create(video_job("a"), max_queued=9)
    assert await jobs.cancel("acme", "a") is not None
    accounts = Accounts()
    assert await JobSettler(jobs, accounts, older_than_s=60.0).settle() == 0
    await client.delete(keys.job("a"))
    await lapse(0.01)
    settler = JobSettler(jobs, accounts, older_than_s=0.0)
    assert (await settler.settle(), await settler.settle(), accounts.corrected) == (1, 0, {})
