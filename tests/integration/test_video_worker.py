"""The replica's half of durable jobs: a real Redis, a real store of files, an engine without a model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis.asyncio as aioredis
import safetensors.numpy

from schedulers.admission import Cost
from schedulers.policies.denoising import DenoisingConfig, denoising
from serving.energy.replica import ReplicaEnergy
from serving.errors import DeadlineExceeded
from serving.replica.job.checkpoints import Checkpoints
from serving.replica.job.engine import EngineOptions, JobEngine
from serving.replica.job.fake import FakePace, FakeRunner
from serving.replica.job.held import Bench, HeldJob, WorkerConfig
from serving.replica.job.outputs import OutputFiles
from serving.replica.job.worker import Worker
from serving.stores.artefacts import ArtefactStore
from serving.stores.jobs import keys
from serving.stores.jobs.base import JobRecord, JobStatus, Lease
from serving.stores.jobs.redis_jobs import RedisJobs, jobs_config
from serving.stores.periodic import ArtefactCleaner
from serving.stores.redis_server import EmbeddedRedis
from serving.telemetry.events import Event, WorkPriced
from tests.support.clip_limits import clip_limits
from tests.support.fillable_store import FillableFileSystem
from tests.support.redis_server import embedded_redis
from tests.support.video_jobs import SECRET, video_job
from tests.support.waiting import lapse
from tests.support.waiting import until as waiting_for

LIMITS = clip_limits()
MODEL = "vdit-nano"
WATTS = 7.0
QUICK = WorkerConfig(
    lease_s=0.6, poll_s=0.02, checkpoint_every=2, checkpoint_share=1.0, preview_every_s=0.05
)  # however long a loaded machine takes to write a checkpoint


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


@pytest.fixture
def fillable() -> Iterator[ArtefactStore]:
    """An object store that a test may fill: ``FillableFileSystem.is_full``."""
    FillableFileSystem.empty()
    store = ArtefactStore("fillable://clips")
    yield store
    store.close()


def build(
    index: RedisJobs,
    store: ArtefactStore,
    name: str = "worker",
    *,
    max_batch: int = 2,
    config: WorkerConfig = QUICK,
    **pace: Any,
) -> Worker:
    options = EngineOptions(family=LIMITS.family, variant=LIMITS.variant)
    bench = Bench(
        model=MODEL,
        name=name,
        engine=JobEngine(options, lambda: FakeRunner(LIMITS.io, FakePace(**pace))),
        index=index,
        checkpoints=Checkpoints(store, SECRET),
        files=OutputFiles(store),
        config=config,
        energy=ReplicaEnergy(None, watts=WATTS),
    )
    return Worker(bench, denoising(DenoisingConfig(max_batch=max_batch, max_units=4)), LIMITS.io.request)


@asynccontextmanager
async def running(worker: Worker) -> AsyncIterator[Worker]:
    await worker.bench.engine.start()
    await worker.start()
    try:
        yield worker
    finally:
        await worker.stop()
        await worker.bench.engine.stop()


async def kill(worker: Worker) -> None:
    """As SIGKILL would: nobody says goodbye to the index."""
    worker.bench.is_draining = worker._is_stopped = True
    for task in [*worker._loops, *worker.bench.tasks]:
        task.cancel()
    await asyncio.gather(*worker._loops, *worker.bench.tasks, return_exceptions=True)


async def until(
    index: RedisJobs,
    job_id: str,
    condition: Callable[[JobRecord], bool],
    timeout_s: float = 15.0,
    owner: str = "acme",
) -> JobRecord:
    async def found() -> JobRecord | None:
        job = await index.get(owner, job_id)
        assert job is not None
        return job if condition(job) else None

    return await waiting_for(found, timeout_s)


def is_over(job: JobRecord) -> bool:
    return job.status.is_final


async def test_job_becomes_a_clip_with_a_thumbnail_a_preview_and_a_report(
    index: RedisJobs, store: ArtefactStore
) -> None:
    told: list[Event] = []
    worker = build(index, store, step_s=0.02)
    worker.bench.tell = told.append
    async with running(worker):
        await index.create(video_job("video_a"), max_queued=10)
        job = await until(index, "video_a", is_over)
    assert job.status is JobStatus.COMPLETED, job.error
    *steps, whole = [one for one in told if isinstance(one, WorkPriced)]
    assert [one.kind for one in steps] == ["step"] * 10
    assert all(one.actual_s > 0.0 for one in steps)
    assert (whole.kind, whole.predicted_s, whole.correction) == ("job", job.predicted_s, None)
    assert whole.actual_s >= 0.8 * sum(one.actual_s for one in steps)
    assert job.step == job.num_steps
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
    await first.bench.engine.start()
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
    await first.bench.engine.stop()


async def test_worker_that_was_late_hands_in_nothing(index: RedisJobs, store: ArtefactStore) -> None:
    """Its lease runs out while a step hangs; another one does the job, and the first must not end it again."""
    await index.create(video_job("video_a"), max_queued=10)
    first = build(index, store, "first", step_s=0.3)
    first.bench.config = WorkerConfig(lease_s=0.05, poll_s=0.02)
    await first.bench.engine.start()
    await first.start()
    await until(index, "video_a", lambda job: job.status is JobStatus.IN_PROGRESS)
    first._loops[1].cancel()  # no heartbeat any more
    first._loops[0].cancel()  # and no new claim
    await lapse(0.1)
    async with running(build(index, store, "second", step_s=0.001)):
        job = await until(index, "video_a", is_over)
        assert job.status is JobStatus.COMPLETED
        await first.stop()
        again = await index.get("acme", "video_a")
    assert again == job
    await first.bench.engine.stop()


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
        await waiting_for(lambda: worker.bench.engine.held_bytes() == 0)


async def test_charge_is_corrected_by_what_the_job_took_when_it_ends(index: RedisJobs, store: ArtefactStore) -> None:
    settled: dict[str, tuple[str, Cost, Cost]] = {}
    worker = build(index, store, step_s=0.02)
    worker.bench.settle = lambda tenant, job_id, charged, actual: settled.update({job_id: (tenant, charged, actual)})
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
        assert actual.joules == pytest.approx(WATTS * actual.seconds)
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
    async with running(build(index, store, fails=lambda request, step: step == 2)):
        await index.create(video_job("video_a"), max_queued=10)
        job = await until(index, "video_a", is_over)
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert job.error.code == "engine_failed"
    assert job.attempts == 2


async def test_job_whose_deadline_passed_while_it_waited_is_not_run_and_costs_nothing(
    index: RedisJobs, store: ArtefactStore
) -> None:
    settled: dict[str, Cost] = {}
    worker = build(index, store, step_s=0.02)
    worker.bench.settle = lambda tenant, job_id, charged, actual: settled.update({job_id: actual})
    await index.create(video_job("video_a", deadline_at_s=time.time() - 0.001), max_queued=10)
    await index.create(video_job("video_b", deadline_at_s=time.time() + 0.1, num_steps=20), max_queued=10)
    async with running(worker):
        expired, late = [await until(index, job_id, is_over) for job_id in ("video_a", "video_b")]
    assert expired.error is not None
    assert (expired.status, expired.error.code, expired.step) == (JobStatus.FAILED, "deadline_exceeded", 0)
    assert isinstance(expired.failure, DeadlineExceeded)
    assert settled["video_a"] == Cost(0.0, 0.0)
    assert late.status is JobStatus.COMPLETED, "what has begun is made all the same"


async def test_settings_that_the_engine_refuses_fail_at_once(index: RedisJobs, store: ArtefactStore) -> None:
    async with running(build(index, store)):
        job = video_job("video_a", num_steps=100_000)
        await index.create(job, max_queued=10)
        over = await until(index, "video_a", is_over)
    assert over.error is not None
    assert over.attempts == 1
    assert "num_inference_steps" in over.error.message
    assert (over.error.code, over.error.param) == ("unsupported_video_setting", "num_inference_steps")
    assert over.failure.param == "num_inference_steps"


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


async def test_flood_of_one_tenant_leaves_places_to_others(index: RedisJobs, store: ArtefactStore) -> None:
    async with running(build(index, store, max_batch=2, step_s=0.05)) as worker:
        for number in range(6):
            await index.create(video_job(f"video_{number}", num_steps=100), max_queued=10)
        await _until_held(worker, 3)  # of four places: what fills a step and a decode
        await lapse(5 * QUICK.poll_s)
        assert worker.num_held == 3
        await index.create(video_job("video_other", owner="other", num_steps=2), max_queued=10)
        await waiting_for(lambda: "video_other" in worker.bench.held or worker.num_held > 3)
        other = await until(index, "video_other", is_over, owner="other")
        assert other.status is JobStatus.COMPLETED
        first = await until(index, "video_0", lambda job: True)
        assert not first.status.is_final, "it did not have to wait for the end of a job"


# -- a store of files that is full or away ---------------------------------------------------------------------------


def waiting(job: JobRecord) -> bool:
    return job.stage == "store" and FillableFileSystem.num_refused > 0


async def test_finished_clip_waits_for_a_full_store_and_is_not_made_again(
    index: RedisJobs, fillable: ArtefactStore
) -> None:
    FillableFileSystem.is_full = True
    async with running(build(index, fillable, step_s=0.005)) as worker:
        await index.create(video_job("video_a"), max_queued=10)
        await until(index, "video_a", waiting)
        await lapse(2 * QUICK.lease_s)  # under the lease all the time
        await index.create(video_job("video_b"), max_queued=10)
        assert (await until(index, "video_b", lambda job: True)).status is JobStatus.QUEUED, "nothing more is claimed"
        assert worker.num_held == 1
        FillableFileSystem.is_full = False
        jobs = [await until(index, name, is_over) for name in ("video_a", "video_b")]
    assert [(job.status, job.attempts) for job in jobs] == [(JobStatus.COMPLETED, 1)] * 2, jobs
    assert jobs[0].report["steps"] == 10
    assert (await fillable.read_artefact(jobs[0].artefacts["video"]))[4:8] == b"ftyp"


async def test_full_store_leaves_no_parts_of_files_behind(index: RedisJobs, fillable: ArtefactStore) -> None:
    FillableFileSystem.is_full = True
    async with running(build(index, fillable, step_s=0.02)):
        await index.create(video_job("video_a"), max_queued=10)
        await until(index, "video_a", waiting)
        assert FillableFileSystem.num_refused >= 3  # checkpoints, a preview, the clip
        assert FillableFileSystem.store == {}


async def test_job_that_the_store_never_took_ends_with_an_error_that_names_the_store(
    index: RedisJobs, fillable: ArtefactStore
) -> None:
    """Each attempt has its patience, and the first to find room ends it; after the last the error says why."""
    FillableFileSystem.is_full = True
    config = replace(QUICK, store_patience_s=0.3, max_attempts=2)
    async with running(build(index, fillable, config=config)):
        await index.create(video_job("video_a"), max_queued=10)
        job = await until(index, "video_a", is_over)
    assert job.error is not None
    assert (job.error.code, job.attempts) == ("store_full", 2)
    assert "the store of files is full" in job.error.message
    assert "secret" not in job.error.message


async def test_attempt_that_gave_up_on_the_store_is_gone_on_with_where_it_ended(
    index: RedisJobs, fillable: ArtefactStore
) -> None:
    config = replace(QUICK, store_patience_s=0.2, checkpoint_every=1)
    async with running(build(index, fillable, config=config, step_s=0.05, decode_s=0.3)):
        await index.create(video_job("video_a"), max_queued=10)
        await until(index, "video_a", lambda job: job.stage == "decode")
        FillableFileSystem.is_full = True
        await until(index, "video_a", lambda job: job.attempts == 2)
        FillableFileSystem.is_full = False
        job = await until(index, "video_a", is_over)
    assert job.status is JobStatus.COMPLETED, job.error
    assert job.report["resumed_at_step"] >= 8
    assert job.report["steps"] == 10 - job.report["resumed_at_step"]  # type: ignore[operator]


@pytest.mark.parametrize("how", ["cancelled", "drained", "lost"])
async def test_wait_for_the_store_ends_when_the_job_is_not_wanted(
    index: RedisJobs, server: EmbeddedRedis, fillable: ArtefactStore, how: str
) -> None:
    FillableFileSystem.is_full = True
    async with running(build(index, fillable)) as worker:
        await index.create(video_job("video_a"), max_queued=10)
        await until(index, "video_a", waiting)
        if how == "cancelled":
            await index.cancel("acme", "video_a")
            job = await until(index, "video_a", is_over)
            assert job.error is not None
            assert job.error.code == "cancelled"
        elif how == "lost":
            async with aioredis.Redis.from_url(server.url) as client:
                await client.flushall()
            await _until_held(worker, 0)
    if how == "drained":
        job = await until(index, "video_a", lambda job: True)
        assert (job.status, job.attempts) == (JobStatus.QUEUED, 0)
    assert worker.num_held == 0


async def _until_held(worker: Worker, count: int) -> None:
    await waiting_for(lambda: worker.num_held == count)


async def test_lost_store_fails_the_job_with_a_stable_code(
    index: RedisJobs, store: ArtefactStore, tmp_path: Path
) -> None:
    (tmp_path / "clips").write_text("a file where the folder should be")
    async with running(build(index, store, config=replace(QUICK, store_patience_s=0.1, max_attempts=1))):
        await index.create(video_job("video_a"), max_queued=10)
        job = await until(index, "video_a", is_over)
    assert job.error is not None
    assert job.error.code == "store_unavailable"


async def test_clip_that_nobody_waits_for_any_more_is_taken_back(
    index: RedisJobs, server: EmbeddedRedis, store: ArtefactStore, tmp_path: Path
) -> None:
    async with running(build(index, store, decode_s=0.3)) as worker:
        await index.create(video_job("video_a"), max_queued=10)
        await until(index, "video_a", lambda job: job.stage == "decode")
        worker._loops[1].cancel()  # no heartbeat: it learns of it when it hands in
        async with aioredis.Redis.from_url(server.url) as client:
            await client.flushall()
        await _until_held(worker, 0)
    assert not list((tmp_path / "clips").rglob("video-*"))


@pytest.mark.parametrize("loss", ["flushed", "damaged"])
async def test_files_of_a_job_that_redis_lost_are_swept_and_those_of_others_are_not(
    index: RedisJobs, server: EmbeddedRedis, store: ArtefactStore, tmp_path: Path, loss: str
) -> None:
    async with running(build(index, store)):
        await index.create(video_job("video_a"), max_queued=10)
        await until(index, "video_a", is_over)
        async with aioredis.Redis.from_url(server.url) as client:
            await (client.flushall() if loss == "flushed" else client.hset(keys.job("video_a"), "record", "junk"))
        await index.create(video_job("video_b"), max_queued=10)
        await until(index, "video_b", is_over)
    await lapse(0.05)
    assert await ArtefactCleaner(store, index, older_than_s=0.01).sweep() == 1
    assert [path.name for path in (tmp_path / "clips/jobs").iterdir()] == ["video_b"]


# -- checkpoints -----------------------------------------------------------------------------------------------------


async def killed(
    index: RedisJobs,
    store: ArtefactStore,
    when: Callable[[JobRecord], bool],
    config: WorkerConfig,
    step_s: float = 0.03,
) -> JobRecord:
    """A worker that dies, and the last that its job was seen to be."""
    own_store = ArtefactStore(store._root)
    first = build(index, own_store, "first", step_s=step_s, config=config)
    await first.bench.engine.start()
    await first.start()
    job = await until(index, "video_a", lambda job: when(job) or job.status.is_final)
    await kill(first)
    await first.bench.engine.stop()
    own_store._threads.shutdown(wait=True)  # a write that had begun: a test's own death is not that of a process
    assert not job.status.is_final
    return job


async def test_short_job_is_checkpointed_as_its_settings_say(index: RedisJobs, store: ArtefactStore) -> None:
    """Not only once it has run for two seconds: replicas killed at half of such a clip had it begin at step 0."""
    shipped = WorkerConfig(lease_s=0.6, poll_s=0.02)
    await index.create(video_job("video_a", num_steps=100), max_queued=10)
    await killed(index, store, lambda job: job.checkpoint_step >= 5, shipped, step_s=0.015)
    async with running(build(index, store, "second")):
        job = await until(index, "video_a", is_over)
    assert job.status is JobStatus.COMPLETED, job.error
    assert job.report["resumed_at_step"] >= 5


async def test_index_that_forgot_the_checkpoint_costs_no_work(
    index: RedisJobs, server: EmbeddedRedis, store: ArtefactStore
) -> None:
    """A Redis that was killed has lost its last second."""
    await index.create(video_job("video_a", num_steps=60), max_queued=10)
    await killed(index, store, lambda job: job.checkpoint_step >= 4, QUICK)
    async with aioredis.Redis.from_url(server.url) as client:
        await client.hset(keys.job("video_a"), "checkpoint_step", "0")
    async with running(build(index, store, "second")):
        job = await until(index, "video_a", is_over)
    assert job.report["resumed_at_step"] >= 4


@pytest.mark.parametrize("damage", ["cut", "changed", "of another job", "gone"])
async def test_checkpoint_that_cannot_be_trusted_is_passed_over_for_the_one_before(
    index: RedisJobs, store: ArtefactStore, tmp_path: Path, damage: str
) -> None:
    def files() -> list[Path]:
        return list((tmp_path / "clips").rglob("checkpoint-*"))

    await index.create(video_job("video_a", num_steps=100), max_queued=10)
    await killed(index, store, lambda job: len(files()) >= 2, QUICK)
    found = sorted(files(), key=lambda path: int(path.name.split("-")[1]))
    newest, steps = found[-1], [int(path.name.split("-")[1]) for path in found]
    whole = newest.read_bytes()
    if damage == "cut":
        newest.write_bytes(whole[: len(whole) // 2])
    elif damage == "changed":
        newest.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "gone":
        newest.unlink()
    else:
        others = Checkpoints(store, SECRET)
        await others.save(video_job("video_b"), Lease(job_id="video_b", token="t", worker="w"), _snapshot(steps[-1]))
        [theirs] = (tmp_path / "clips/jobs/video_b").iterdir()
        newest.write_bytes(theirs.read_bytes())
    async with running(build(index, store, "second")):
        job = await until(index, "video_a", is_over)
    assert job.status is JobStatus.COMPLETED, job.error
    assert job.attempts == 2
    assert job.report["resumed_at_step"] == steps[-2]


def _snapshot(step: int) -> bytes:
    return safetensors.numpy.save({"latents": np.zeros(2048, np.uint32)}, {"step": str(step)})


async def test_job_that_has_to_wait_leaves_its_work_in_the_store(index: RedisJobs, store: ArtefactStore) -> None:
    config = replace(QUICK, checkpoint_every=1000)
    async with running(build(index, store, max_batch=1, step_s=0.02, config=config)):
        await index.create(video_job("video_slow", num_steps=60), max_queued=10)
        await until(index, "video_slow", lambda job: job.step >= 3)
        await index.create(video_job("video_urgent", priority="high", num_steps=30), max_queued=10)
        job = await until(index, "video_slow", lambda job: job.checkpoint_step > 0)
    assert job.preemptions == 1


async def test_store_that_is_slow_to_write_gets_fewer_checkpoints(index: RedisJobs, store: ArtefactStore) -> None:
    worker = build(index, store, config=replace(QUICK, checkpoint_share=0.1))
    now_s = 100.0
    worker.bench.clock = lambda: now_s
    held = HeldJob(video_job("video_a"), Lease(job_id="video_a", token="t", worker="w"))
    held.step, worker.saving.took_s, held.checkpoint_at_s = 5, 2.0, 90.0
    worker.saving.consider(held)
    assert held.checkpointing is None
    now_s = 110.0  # 20 seconds later, of which 2 are a tenth
    worker.saving.consider(held)
    assert held.checkpointing is not None
    await worker.saving.end(held)


async def test_job_that_comes_back_before_it_was_let_go_is_left_to_others(
    index: RedisJobs, server: EmbeddedRedis, store: ArtefactStore
) -> None:
    await index.create(video_job("video_a"), max_queued=10)
    async with running(build(index, store, step_s=0.2)) as worker:
        await until(index, "video_a", lambda job: job.step >= 1)
        async with aioredis.Redis.from_url(server.url) as client:  # its lease runs out
            await client.zadd(f"{keys.JOBS}:leases", {"video_a": 1})
        job = await until(index, "video_a", is_over)
        assert job.status is JobStatus.COMPLETED, job.error
        await _until_held(worker, 0)
