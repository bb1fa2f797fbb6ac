"""The replica's half of durable jobs: a real Redis, a real store of files, an engine without a model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as aioredis

from schedulers.admission import Cost
from schedulers.video import VideoPolicyConfig, VideoScheduler
from serving.engines.video.fake_engine import FakeVideoEngine, FakeVideoOptions
from serving.jobs.artefacts import ArtefactStore
from serving.jobs.redis_jobs import RedisJobs, jobs_config
from serving.stores.redis_server import EmbeddedRedis
from serving.video.checkpoints import Checkpoints
from serving.video.delivery import Delivery
from serving.video.domain import JobStatus, VideoJob
from serving.video.worker import VideoWorker, WorkerConfig
from tests.support.redis_server import embedded_redis
from tests.support.video_jobs import SECRET, video_job

MODEL = "vdit-nano"
QUICK = WorkerConfig(lease_s=0.6, poll_s=0.02, checkpoint_every=2, preview_every_s=0.05)


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedRedis]:
    with embedded_redis() as server:
        yield server


@pytest.fixture
async def index(server: EmbeddedRedis) -> AsyncIterator[RedisJobs]:
    client = aioredis.Redis.from_url(server.url)
    await client.flushall()
    await client.aclose()
    index = RedisJobs(jobs_config(server.url), secret=SECRET, max_attempts=3, restart_grace_s=0.0)
    await index.start()
    yield index
    await index.stop()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ArtefactStore]:
    store = ArtefactStore(str(tmp_path / "clips"))
    yield store
    store.close()


def build(
    index: RedisJobs, store: ArtefactStore, name: str = "worker", *, max_batch: int = 2, **engine: Any
) -> VideoWorker:
    return VideoWorker(
        model=MODEL,
        name=name,
        engine=FakeVideoEngine(FakeVideoOptions(**engine)),
        scheduler=VideoScheduler(VideoPolicyConfig(max_batch=max_batch, max_jobs=4)),
        index=index,
        checkpoints=Checkpoints(store, SECRET),
        delivery=Delivery(store),
        config=QUICK,
    )


@asynccontextmanager
async def running(worker: VideoWorker) -> AsyncIterator[VideoWorker]:
    await worker.engine.start()
    await worker.start()
    try:
        yield worker
    finally:
        await worker.stop()
        await worker.engine.stop()


async def kill(worker: VideoWorker) -> None:
    """As SIGKILL would: nobody says goodbye to the index."""
    worker._is_draining = worker._is_stopped = True
    for task in [*worker._loops, *worker._tasks]:
        task.cancel()
    await asyncio.gather(*worker._loops, *worker._tasks, return_exceptions=True)


async def until(
    index: RedisJobs, job_id: str, condition: Callable[[VideoJob], bool], timeout_s: float = 15.0
) -> VideoJob:
    deadline_s = time.monotonic() + timeout_s
    while True:
        job = await index.get("acme", job_id)
        assert job is not None
        if condition(job):
            return job
        assert time.monotonic() < deadline_s, job
        await asyncio.sleep(0.02)


def is_over(job: VideoJob) -> bool:
    return job.status.is_final


async def test_job_becomes_a_clip_with_a_thumbnail_a_preview_and_a_report(
    index: RedisJobs, store: ArtefactStore
) -> None:
    async with running(build(index, store, step_s=0.02)):
        await index.create(video_job("video_a"), max_queued=10)
        job = await until(index, "video_a", is_over)
    assert job.status is JobStatus.COMPLETED, job.error
    assert job.step == job.settings.num_steps
    assert job.report["steps"] == 10
    assert job.report["operating_point"] == "dense-20"
    clip = await store.read_artefact(job.artefacts["video"])
    assert clip[4:8] == b"ftyp"
    assert (await store.read_artefact(job.artefacts["thumbnail"]))[:2] == b"\xff\xd8"
    assert await store.exists("jobs/video_a/preview.jpg")


async def test_checkpoints_are_gone_once_the_job_is_over(
    index: RedisJobs, store: ArtefactStore, tmp_path: Path
) -> None:
    async with running(build(index, store, step_s=0.03)):
        await index.create(video_job("video_a"), max_queued=10)
        job = await until(index, "video_a", lambda job: job.checkpoint_step > 0 or job.status.is_final)
        assert job.checkpoint_step > 0
        await until(index, "video_a", is_over)
    # The worker has stopped: all that it had to do is done.
    assert not list((tmp_path / "clips").rglob("checkpoint-*"))


async def test_job_of_a_killed_worker_goes_on_from_its_checkpoint_and_ends_the_same(
    index: RedisJobs, store: ArtefactStore
) -> None:
    await index.create(video_job("video_a", num_steps=20), max_queued=10)
    first = build(index, store, "first", step_s=0.04)
    await first.engine.start()
    await first.start()
    await until(index, "video_a", lambda job: job.checkpoint_step >= 4)
    await kill(first)
    async with running(build(index, store, "second", step_s=0.001)):
        resumed = await until(index, "video_a", is_over)
    assert resumed.status is JobStatus.COMPLETED, resumed.error
    assert resumed.attempts == 2
    assert resumed.report["resumed_at_step"] >= 4
    async with running(build(index, store, "third", step_s=0.001)):
        await index.create(video_job("video_b", num_steps=20), max_queued=10)
        whole = await until(index, "video_b", is_over)
    assert resumed.artefacts["video"].sha256 == whole.artefacts["video"].sha256
    await first.engine.stop()


async def test_worker_that_was_late_hands_in_nothing(index: RedisJobs, store: ArtefactStore) -> None:
    """Its lease runs out while a step hangs; another one does the job, and the first must not end it again."""
    await index.create(video_job("video_a"), max_queued=10)
    first = build(index, store, "first", step_s=0.3)
    first.config = WorkerConfig(lease_s=0.05, poll_s=0.02)
    await first.engine.start()
    await first.start()
    await until(index, "video_a", lambda job: job.status is JobStatus.IN_PROGRESS)
    first._loops[1].cancel()  # no heartbeat any more
    first._loops[0].cancel()  # and no new claim
    await asyncio.sleep(0.1)
    async with running(build(index, store, "second", step_s=0.001)):
        job = await until(index, "video_a", is_over)
        assert job.status is JobStatus.COMPLETED
        await first.stop()
        again = await index.get("acme", "video_a")
    assert again == job
    await first.engine.stop()


async def test_cancelled_job_ends_within_a_step_and_the_others_go_on(index: RedisJobs, store: ArtefactStore) -> None:
    async with running(build(index, store, step_s=0.05)) as worker:
        await index.create(video_job("video_a", num_steps=100), max_queued=10)
        await index.create(video_job("video_b", num_steps=10), max_queued=10)
        await until(index, "video_a", lambda job: job.step >= 1)
        await index.cancel("acme", "video_a")
        job = await until(index, "video_a", is_over)
        assert job.error is not None
        assert job.error.code == "cancelled"
        assert job.step < 50
        assert (await until(index, "video_b", is_over)).status is JobStatus.COMPLETED
        assert worker.engine.held_bytes() == 0


async def test_charge_is_corrected_by_what_the_job_took_when_it_ends(index: RedisJobs, store: ArtefactStore) -> None:
    settled: dict[str, tuple[str, Cost, Cost]] = {}
    worker = build(index, store, step_s=0.02)
    worker.settle = lambda tenant, job_id, charged, actual: settled.update({job_id: (tenant, charged, actual)})
    async with running(worker):
        for job_id, num_steps in (("video_a", 10), ("video_b", 100)):
            await index.create(video_job(job_id, num_steps=num_steps), max_queued=10)
        await until(index, "video_b", lambda job: job.step >= 1)
        await index.cancel("acme", "video_b")
        jobs = {job_id: await until(index, job_id, is_over) for job_id in ("video_a", "video_b")}
    assert settled.keys() == jobs.keys()
    for job_id, (tenant, charged, actual) in settled.items():
        job = jobs[job_id]
        assert (tenant, charged) == ("acme", Cost(job.predicted_j, job.predicted_s))
        assert actual.joules == pytest.approx(job.report["energy_j"])
        assert actual.seconds == pytest.approx(job.report["compute_ms"] / 1e3)  # type: ignore[operator]
    assert settled["video_a"][2].seconds > 0.0


async def test_drained_worker_gives_its_jobs_back_with_a_checkpoint_and_without_an_attempt(
    index: RedisJobs, store: ArtefactStore
) -> None:
    await index.create(video_job("video_a", num_steps=100), max_queued=10)
    async with running(build(index, store, step_s=0.02)) as worker:
        await until(index, "video_a", lambda job: job.step >= 3)
    assert worker.num_held == 0
    job = await index.get("acme", "video_a")
    assert job is not None
    assert (job.status, job.attempts) == (JobStatus.QUEUED, 0)
    assert job.checkpoint_step >= 3


async def test_engine_failure_is_tried_again_and_then_said(index: RedisJobs, store: ArtefactStore) -> None:
    async with running(build(index, store, fails=lambda job_id, settings, step: step == 2)):
        await index.create(video_job("video_a"), max_queued=10)
        job = await until(index, "video_a", is_over)
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert job.error.code == "engine_failed"
    assert job.attempts == 2


async def test_settings_that_the_engine_refuses_fail_at_once(index: RedisJobs, store: ArtefactStore) -> None:
    async with running(build(index, store)):
        job = video_job("video_a", num_steps=100_000)
        await index.create(job, max_queued=10)
        over = await until(index, "video_a", is_over)
    assert over.error is not None
    assert over.attempts == 1
    assert "num_inference_steps" in over.error.message


async def test_urgent_job_preempts_at_a_step_boundary(index: RedisJobs, store: ArtefactStore) -> None:
    async with running(build(index, store, max_batch=1, step_s=0.02)):
        await index.create(video_job("video_slow", num_steps=60), max_queued=10)
        await until(index, "video_slow", lambda job: job.step >= 3)
        await index.create(video_job("video_urgent", priority="high", num_steps=5), max_queued=10)
        urgent = await until(index, "video_urgent", is_over)
        slow = await index.get("acme", "video_slow")
        assert slow is not None
        assert not slow.status.is_final
        assert urgent.status is JobStatus.COMPLETED
        slow = await until(index, "video_slow", is_over)
    assert slow.status is JobStatus.COMPLETED
    assert slow.preemptions >= 1


async def test_lost_store_fails_the_job_with_a_stable_code(
    index: RedisJobs, store: ArtefactStore, tmp_path: Path
) -> None:
    (tmp_path / "clips").write_text("a file where the folder should be")
    async with running(build(index, store)):
        await index.create(video_job("video_a"), max_queued=10)
        job = await until(index, "video_a", is_over)
    assert job.error is not None
    assert job.error.code == "store_unavailable"
