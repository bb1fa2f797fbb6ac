"""Whose job is claimed next, on a real Redis: fair among owners by joules over weight, urgency within an owner."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from random import Random

import pytest
import redis.asyncio as aioredis

from serving.stores.jobs import keys
from serving.stores.jobs.base import Claim, JobError
from serving.stores.jobs.redis_jobs import RedisJobs, jobs_config
from tests.support.video_jobs import SECRET, progress, video_job
from tests.support.waiting import lapse

MODEL, LONG_S, SHORT_S = "vdit-nano", 60.0, 0.05
WEIGHTS = {"a": 1.0, "b": 3.0, "c": 0.5}


@pytest.fixture
async def client(url: str) -> AsyncIterator[aioredis.Redis]:
    async with aioredis.Redis.from_url(url) as client:
        await client.flushall()
        yield client


@pytest.fixture
async def jobs(url: str, client: aioredis.Redis) -> AsyncIterator[RedisJobs]:
    index = RedisJobs(
        jobs_config(url), secret=SECRET, max_open_per_owner=999, max_attempts=9, restart_grace_s=0.0, weights=WEIGHTS
    )
    yield index
    await index.stop()


async def create(
    jobs: RedisJobs,
    name: str,
    owner: str,
    joules: float = 12.0,
    created_at_s: float = 0.0,
    elsewhere_j: float = 0.0,
) -> None:
    job = video_job(name, owner=owner, predicted_j=joules, created_at_s=created_at_s, elsewhere_j=elsewhere_j)
    await jobs.create(job, max_queued=9999)


async def claimed(jobs: RedisJobs, lease_s: float = LONG_S) -> Claim:
    claim = await jobs.claim(MODEL, "w", lease_s)
    assert claim is not None
    return claim


async def order_of(jobs: RedisJobs, count: int) -> str:
    return "".join([(await claimed(jobs)).job.owner for _ in range(count)])


async def test_flood_of_one_owner_does_not_delay_another(jobs: RedisJobs) -> None:
    now_s = time.time()
    for number in range(200):
        await create(jobs, f"a{number}", "a", created_at_s=now_s)
    assert await order_of(jobs, 5) == "aaaaa"
    for number in range(2):
        await create(jobs, f"d{number}", "d", created_at_s=now_s + 60)
    assert await order_of(jobs, 4) in ("adad", "dada", "adda", "daad")
    assert await order_of(jobs, 3) == "aaa"
    assert await jobs.num_queued(MODEL) == 202 - 12


async def test_who_was_served_elsewhere_waits_until_others_were_served_as_much(jobs: RedisJobs) -> None:
    for number in range(8):
        await create(jobs, f"d{number}", "d")
    for number in range(8):
        await create(jobs, f"a{number}", "a", elsewhere_j=0.0 if number else 36.0)
    order = await order_of(jobs, 8)
    assert order[:3] == "ddd"
    assert order[3:].count("a") in (2, 3)


async def test_what_nobody_else_wanted_is_not_owed_and_what_is_owed_is_bounded(jobs: RedisJobs) -> None:
    await create(jobs, "a0", "a", elsewhere_j=1e9)
    for number in range(40):
        await create(jobs, f"d{number}", "d")
    assert await order_of(jobs, 2) in ("ad", "da")
    await create(jobs, "e0", "e", elsewhere_j=1e9)
    assert 14 <= (await order_of(jobs, 20)).index("e") <= 17


async def test_owner_that_is_passed_over_keeps_what_it_is_owed(jobs: RedisJobs) -> None:
    for number in range(6):
        await create(jobs, f"a{number}", "a", created_at_s=float(number))
        await create(jobs, f"d{number}", "d", created_at_s=float(number))
    passed = [await jobs.claim(MODEL, "w", LONG_S, passing_over=["a"]) for _ in range(3)]
    assert [claim.job.owner for claim in passed if claim is not None] == ["d"] * 3
    assert await jobs.claim(MODEL, "w", LONG_S, passing_over=["a", "d"]) is None
    assert await order_of(jobs, 3) == "aaa", "until it has had as much"
    assert sorted(await order_of(jobs, 2)) == ["a", "d"]
    await create(jobs, "e0", "e")
    assert "e" in await order_of(jobs, 3), "who comes later starts where others stand"


async def test_work_that_waits_is_known_by_owner(jobs: RedisJobs, client: aioredis.Redis) -> None:
    for name, owner in (("a0", "a"), ("a1", "a"), ("s0", "with space"), ("s1", "*")):
        await create(jobs, name, owner)
    queue = await jobs.queue(MODEL)
    assert queue.owners_s == {"a": 4.0, "with space": 2.0, "*": 2.0}
    assert (queue.called_s, queue.total_s) == (0.0, 8.0)
    assert queue.turn_s("a", 1.0) == pytest.approx(4.0 + 2.0 + 2.0)
    assert queue.turn_s("b", 1.0) == pytest.approx(1.0 / 3.0 + 2 * 1.0 / 3.0)  # three times the weight
    back = await claimed(jobs)
    await jobs.requeue(back.lease, progress(5, checkpoint_step=5), counts_as_attempt=False)
    queue = await jobs.queue(MODEL)
    assert (queue.called_s, queue.total_s) == (1.0, 7.0)
    assert queue.turn_s("new", 0.0) == 1.0
    await client.hset(keys.job(back.job.id), "record", b"junk")
    await client.hdel(keys.job(back.job.id), "joules")
    await order_of(jobs, 3)
    assert await jobs.claim(MODEL, "w", LONG_S) is None
    assert await client.exists(keys.load(MODEL)) == 0


async def test_owners_share_by_weight_and_joules(jobs: RedisJobs) -> None:
    for number in range(60):
        await create(jobs, f"a{number}", "a", 10.0)
        await create(jobs, f"b{number}", "b", 5.0)
    order = await order_of(jobs, 56)
    assert order.count("b") == 6 * order.count("a")  # three times the weight, at half the joules


async def test_job_that_comes_back_goes_first_and_is_not_charged_again(jobs: RedisJobs) -> None:
    for number in range(9):
        await create(jobs, f"a{number}", "a", created_at_s=float(number))
        await create(jobs, f"d{number}", "d", created_at_s=float(number))
    first = await claimed(jobs, SHORT_S)
    other = await claimed(jobs)
    assert {first.job.owner, other.job.owner} == {"a", "d"}
    await lapse(2 * SHORT_S)
    again = await claimed(jobs)
    assert again.job.id == first.job.id
    assert await jobs.requeue(again.lease, progress(5, checkpoint_step=5), counts_as_attempt=False)
    assert (await claimed(jobs)).job.id == first.job.id
    order = await order_of(jobs, 10)
    assert order.count("a") == order.count("d")


async def test_what_a_job_really_took_corrects_its_charge(jobs: RedisJobs) -> None:
    for number in range(12):
        await create(jobs, f"a{number}", "a", 10.0, float(number))
        await create(jobs, f"d{number}", "d", 10.0, float(number))
    claims = [await claimed(jobs), await claimed(jobs)]
    cheap = next(claim for claim in claims if claim.job.owner == "a")
    dear = next(claim for claim in claims if claim.job.owner == "d")
    assert await jobs.complete(dear.lease, {}, {"energy_j": 50.0}, 60.0)
    assert await jobs.fail(cheap.lease, JobError(code="cancelled", message="m"), {"energy_j": 10.0}, 60.0)
    assert await order_of(jobs, 4) == "aaaa"  # until a has been charged 50 as well
    assert sorted(await order_of(jobs, 2)) == ["a", "d"]


async def test_cancelled_job_gives_back_what_it_was_charged_for_the_rest(jobs: RedisJobs) -> None:
    for number in range(9):
        await create(jobs, f"a{number}", "a", 10.0, float(number))
        await create(jobs, f"d{number}", "d", 5.0, float(number))
    claims = [await claimed(jobs) for _ in range(2)]
    stopped = next(claim for claim in claims if claim.job.owner == "a")
    assert await jobs.requeue(stopped.lease, progress(5, checkpoint_step=5), counts_as_attempt=False)
    assert await jobs.cancel("a", stopped.job.id) is not None
    assert sorted(await order_of(jobs, 2)) == ["a", "d"]  # both stand at 5


async def test_shares_are_forgotten_when_nothing_waits(jobs: RedisJobs, client: aioredis.Redis) -> None:
    for number in range(20):
        await create(jobs, f"j{number}", f"once{number}")
    await order_of(jobs, 20)
    assert await jobs.claim(MODEL, "w", LONG_S) is None
    left = [key async for key in client.scan_iter(f"{keys.JOBS}:*")]
    assert not [key for key in left if b":turns:" in key or b":flow:" in key or b":virtual" in key]


async def test_owner_that_has_stopped_is_forgotten_once_the_others_have_caught_up(
    jobs: RedisJobs, client: aioredis.Redis
) -> None:
    for number in range(9):
        await create(jobs, f"a{number}", "a")
    for number in range(20):
        await create(jobs, f"j{number}", f"once{number}")
    await order_of(jobs, 24)
    assert await client.zrange(f"{keys.JOBS}:turns:{MODEL}", 0, -1) == [b"a"]


async def test_owner_that_comes_job_by_job_is_not_served_twice_as_often(jobs: RedisJobs) -> None:
    for number in range(30):
        await create(jobs, f"a{number}", "a", created_at_s=float(number))
    await create(jobs, "d", "d")
    order = ""
    for number in range(20):
        owner = (await claimed(jobs)).job.owner
        order += owner
        if owner == "d":
            await create(jobs, f"d{number}", "d")
    assert abs(order.count("a") - order.count("d")) <= 1


# -- a plain twin, and the bound -------------------------------------------------------------------------------------


@dataclass
class Job:
    name: str
    owner: str
    joules: float
    is_paid: bool = False


@dataclass
class Twin:
    """The same rules over a list: every claim looks at every job."""

    waiting: list[Job] = field(default_factory=list)
    tags: dict[str, float] = field(default_factory=dict)
    virtual: float = 0.0

    def add(self, job: Job) -> None:
        self.waiting.append(job)
        if not job.is_paid:
            self.tags[job.owner] = max(self.tags.get(job.owner, 0.0), self.virtual)

    def claim(self) -> Job | None:
        if not self.waiting:
            self.tags, self.virtual = {}, 0.0
            return None
        paid = [job for job in self.waiting if job.is_paid]
        owner = "" if paid else min((self.tags[job.owner], job.owner) for job in self.waiting)[1]
        job = min(paid or [job for job in self.waiting if job.owner == owner], key=lambda job: job.name)
        self.waiting.remove(job)
        if not job.is_paid:
            self.virtual = self.tags[owner]
            self.tags[owner] += job.joules / WEIGHTS[owner]
            job.is_paid = True
        return job


@pytest.mark.parametrize("seed", range(3))
async def test_claims_are_those_of_the_twin_and_keep_to_the_bound(jobs: RedisJobs, seed: int) -> None:
    """Charges of any two owners that wait all the time, over their weights, differ by at most their largest charges."""
    rng, twin, numbers = Random(seed), Twin(), itertools.count()
    held: list[tuple[Job, Claim]] = []
    largest = dict.fromkeys(WEIGHTS, 0.0)
    intervals: list[dict[str, float]] = []

    async def step(kind: str) -> None:
        if kind == "create":
            number, owner = next(numbers), rng.choice("abc")
            job = Job(f"{number:04}", owner, rng.choice([0.25, 1.0, 2.5]))
            largest[owner] = max(largest[owner], job.joules)
            await create(jobs, job.name, owner, job.joules, float(number))
            twin.add(job)
        elif kind == "claim":
            claim, before = await jobs.claim(MODEL, "w", LONG_S), {job.name for job in twin.waiting if job.is_paid}
            intervals.append(dict.fromkeys({job.owner for job in twin.waiting}, 0.0))
            expected = twin.claim()
            assert (claim and claim.job.id) == (expected and expected.name)
            if claim is not None and expected is not None:
                held.append((expected, claim))
                for charged in intervals:
                    if expected.owner in charged and expected.name not in before:
                        charged[expected.owner] += expected.joules
        elif held:
            job, claim = held.pop(rng.randrange(len(held)))
            if kind == "give back":
                assert await jobs.requeue(claim.lease, progress(0), counts_as_attempt=False)
                twin.add(job)
            else:
                assert await jobs.complete(claim.lease, {}, {}, 60.0)

    for _ in range(250):
        await step(rng.choices(["create", "claim", "give back", "complete"], [4, 3, 1, 1])[0])
        waiting = {job.owner for job in twin.waiting if not job.is_paid}
        for charged in intervals:
            for one, other in itertools.combinations(charged, 2):
                distance = abs(charged[one] / WEIGHTS[one] - charged[other] / WEIGHTS[other])
                assert distance <= largest[one] / WEIGHTS[one] + largest[other] / WEIGHTS[other] + 1e-9
            for owner in charged.keys() - waiting:
                del charged[owner]
    assert len(intervals) > 50
