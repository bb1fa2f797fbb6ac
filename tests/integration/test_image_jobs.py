"""Pictures as durable jobs: asked for over HTTP, kept in a real Redis, made by the engine that answers calls."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import redis.asyncio as aioredis
from PIL import Image

from schedulers.admission import Cost
from schedulers.plan import Cost as PointCost
from schedulers.plan import Point
from schedulers.policies.denoising import DenoisingConfig, denoising
from serving.delivery.job.base import JobModel
from serving.delivery.job.service import Jobs, JobServiceConfig
from serving.delivery.pipeline import Pipeline, PipelineLimits
from serving.delivery.unary.service import ServedModel, UnaryRequests
from serving.delivery.unary.wire import RowsAsked, SampleAnswer, SampleCall, SampleOutcome, pack
from serving.front.auth import Authenticator
from serving.gateway.http import build_http_app
from serving.limits import IngressLimits
from serving.media.decode import decode
from serving.media.limits import MediaLimits
from serving.media.prepare import PreparedImage
from serving.operating_points import Points
from serving.replica.driver import Driver
from serving.replica.job.checkpoints import Checkpoints
from serving.replica.job.held import Bench, WorkerConfig
from serving.replica.job.outputs import OutputFiles
from serving.replica.job.worker import Worker
from serving.replica.staged.jobs import RowJobs
from serving.service import Service
from serving.stores.artefacts import ArtefactStore
from serving.stores.jobs.base import JobStatus
from serving.stores.jobs.redis_jobs import RedisJobs, jobs_config
from serving.stores.redis_server import EmbeddedRedis
from serving.tasks.images.jobs import IMAGES, plan_of
from tests.support.clients import HttpReply, asgi
from tests.support.fake_service import FakeFiles, FakeService, make_image_card
from tests.support.media_files import encode
from tests.support.memory_results import MemoryResults
from tests.support.painter import IO, UNPAINTABLE, Painter, PainterEngine, painting, words
from tests.support.redis_server import embedded_redis
from tests.support.video_clients import Presence, events_of
from tests.support.video_jobs import SECRET
from tests.support.waiting import until

MODEL = "painter"
EDITS, JOBS = "/v1/images/edits", "/v1/images/jobs"
SLOW_S = 10.0
"""Predicted of one row."""


class Media:
    """Decodes on the loop."""

    limits = MediaLimits()

    async def prepare(self, data: bytes, model: str, budget: object, caller: object) -> PreparedImage:
        rgb = decode(data, self.limits).rgb
        return PreparedImage(
            pixels=rgb, content_sha256=bytes(32), original_size=rgb.shape[:2], decode_ms=0.0, grid=None
        )


class Way:
    """The dispatcher's part: straight to the driver."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def predicted_wait_s(self) -> float:
        return 0.0

    def predicted_turn_s(self, tenant: str, num_samples: int) -> float:
        return self.predicted_wait_s()

    async def run(self, samples: Sequence[SampleCall], predicted_s: float, settle: Any) -> list[SampleOutcome]:
        outcomes: list[SampleOutcome] = []
        for sample in samples:
            deadline_s = self._driver.clock() + sample.remaining_s
            made = await self._driver.submit(sample.inputs, deadline_s=deadline_s, thresholds=sample.thresholds)
            outcomes.append(SampleAnswer(pack(made.outputs), 0, False, made.queue_s, made.compute_s))
        settle(outcomes)
        return outcomes


class System:
    """A gateway and a replica. ``worker`` claims once it is started."""

    def __init__(self, index: RedisJobs, files: ArtefactStore, driver: Driver, engine: RowJobs) -> None:
        self.index, self.driver, self.engine, self.results = index, driver, engine, MemoryResults()
        pipeline = Pipeline(cast(Any, self.results), PipelineLimits(max_in_flight=8, default_deadline_s=30.0))
        cost = PointCost(latency_s={"rows": SLOW_S}, busy_s={"rows": 1.0}, watts=3.0)
        points = Points(
            points=(Point(name="all", settings={}, cost=cost),),
            work=lambda settings, request=None: {"rows": 1.0},
            watts=3.0,
            checkpoint_sha256="0" * 64,
        )
        card = make_image_card(MODEL, IO)
        served = ServedModel(card=card, points=points, dispatcher=cast(Any, Way(driver)), words=words)
        unary = UnaryRequests({MODEL: served}, cast(Any, Media()), pipeline, max_images=8)
        config = JobServiceConfig(max_queued=10, secret=b"s", poll_s=0.01)
        self.jobs = Jobs(IMAGES, {MODEL: JobModel(card=card, plan=plan_of)}, index, files, pipeline, config)
        service = Service(unary, FakeService(), FakeService(), self.jobs, FakeFiles())
        self.app = build_http_app(service, Authenticator({}, True), IngressLimits(), lambda: b"")
        self.corrected: dict[str, Cost] = {}
        self._files = files
        self.worker = self.another("replica-1", engine)

    def another(self, name: str, engine: RowJobs) -> Worker:
        bench = Bench(
            model=MODEL,
            name=name,
            engine=engine,
            index=self.index,
            checkpoints=Checkpoints(self._files, SECRET),
            files=OutputFiles(self._files),
            config=WorkerConfig(lease_s=0.6, poll_s=0.02),
            settle=lambda tenant, job_id, charged, actual: self.corrected.update({job_id: actual}),
        )
        return Worker(bench, denoising(DenoisingConfig()), RowsAsked)

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> HttpReply:
        sent = b"" if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json", **headers}
        return await asgi(self.app, method, path, b"", headers, receive=Presence(sent).receive)

    async def begin(self, value: int = 10, **changes: Any) -> str:
        reply = await self.ask("POST", EDITS, asked(value, **changes))
        assert reply.status == 202, reply.body
        return str(reply.json["id"])

    async def shown(self, job_id: str) -> Any:
        return (await self.ask("GET", f"{JOBS}/{job_id}")).json


def asked(value: int = 10, *, background: bool | None = True, **changes: Any) -> dict[str, Any]:
    picture = base64.b64encode(encode(np.full((6, 8, 3), value, np.uint8))).decode()
    vireo = {} if background is None else {"background": background}
    return {"model": MODEL, "prompt": "a ball", "image": picture, "seed": 7, "vireo": vireo, **changes}


def pixels_of(file: bytes) -> Any:
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image)


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedRedis]:
    with embedded_redis() as server:
        yield server


@pytest.fixture
async def engine() -> PainterEngine:
    return PainterEngine(Painter())


@pytest.fixture
async def system(server: EmbeddedRedis, tmp_path: Path, engine: PainterEngine) -> AsyncIterator[System]:
    async with aioredis.Redis.from_url(server.url) as client:
        await client.flushall()
    index, files = RedisJobs(jobs_config(server.url), secret=SECRET, restart_grace_s=0.0), ArtefactStore(str(tmp_path))
    async with painting(engine) as (driver, row_jobs):
        system = System(index, files, driver, row_jobs)
        await system.worker.start()
        yield system
        engine.gate.set()
        await system.worker.stop()
    await index.stop()
    files.close()


async def test_job_makes_the_pictures_that_a_waiting_call_gets(system: System) -> None:
    waited = (await system.ask("POST", EDITS, asked(background=False, n=2))).json
    job_id = await system.begin(n=2)
    assert job_id.startswith("image_")
    events = events_of((await system.ask("GET", f"{JOBS}/{job_id}/events")).body)
    assert events[-1][0] == "completed"
    shown = await system.shown(job_id)
    assert (shown["seeds"], shown["progress"], len(shown["urls"])) == ([7, 8], 100, 2)
    for variant, each in zip(("image", "image-2"), waited["data"], strict=True):
        file = await system.ask("GET", f"{JOBS}/{job_id}/content?variant={variant}")
        assert file.headers["content-type"] == "image/png"
        assert np.array_equal(pixels_of(file.body), pixels_of(base64.b64decode(each["b64_json"])))
    assert system.corrected[job_id].seconds == pytest.approx(shown["vireo"]["compute_ms"] / 1e3)
    assert (await system.ask("DELETE", f"{JOBS}/{job_id}")).status == 200
    assert (await system.ask("GET", f"{JOBS}/{job_id}")).error["code"] == "image_not_found"


async def test_call_that_is_sent_again_with_its_key_is_the_same_job(system: System, engine: PainterEngine) -> None:
    engine.gate.clear()
    key = {"idempotency-key": "k"}
    bodies = [asked(), asked(), asked(n=1, output_format="png", size="auto", response_format="url")]
    replies = [await system.ask("POST", EDITS, body, **key) for body in bodies]
    assert [reply.status for reply in replies] == [202] * 3
    assert len({reply.json["id"] for reply in replies}) == 1
    assert len((await system.ask("GET", JOBS)).json["data"]) == 1
    for changed, named in ((asked(11), "image"), (asked(prompt="a cube"), "prompt"), (asked(n=2), "n")):
        other = await system.ask("POST", EDITS, changed, **key)
        assert (other.status, other.error["code"]) == (422, "idempotency_key_reused")
        assert f"different: {named}. " in other.error["message"]
    for bad in ("k" * 256, "k\tk"):
        refused = await system.ask("POST", EDITS, asked(), **{"idempotency-key": bad})
        assert (refused.status, refused.error["param"]) == (400, "idempotency-key")


async def test_call_that_takes_long_is_a_job_and_says_so_to_the_end(system: System) -> None:
    job_id = await system.begin(background=None, output_format="jpeg")
    await until(lambda: job_id in system.corrected)
    shown = await system.shown(job_id)
    assert (shown["status"], shown["vireo"]["degraded"]) == ("completed", ["background"])
    file = await system.ask("GET", f"{JOBS}/{job_id}/content")
    assert file.body.startswith(b"\xff\xd8")


async def test_running_job_that_its_owner_cancels_ends_and_leaves_nothing(
    system: System, engine: PainterEngine
) -> None:
    engine.gate.clear()
    job_id = await system.begin()
    await until(lambda: system.driver.overdue_s() > 0)
    assert (await system.ask("DELETE", f"{JOBS}/{job_id}")).status == 200
    await until(lambda: all(held.is_unwanted.is_set() for held in system.worker.bench.held.values()))
    engine.gate.set()
    await until(lambda: job_id in system.corrected)
    job = await system.jobs.get("local", job_id)
    assert job.error is not None
    assert job.error.code == "cancelled"
    await until(lambda: system.driver.num_samples == system.engine.held_bytes() == 0)
    assert system.corrected[job_id].seconds > 0  # it ran, and is charged for that


async def test_job_of_a_lost_replica_is_begun_anew_by_another(system: System, engine: PainterEngine) -> None:
    engine.gate.clear()
    job_id = await system.begin()
    await until(lambda: system.driver.overdue_s() > 0)
    for loop in system.worker._loops:  # neither claims nor renews any more
        loop.cancel()
    async with painting(PainterEngine(Painter())) as (_, row_jobs):
        second = system.another("replica-2", row_jobs)
        await second.start()
        await until(lambda: job_id in system.corrected)
        await second.stop()
    job = await system.jobs.get("local", job_id)
    assert (job.status, job.attempts) == (JobStatus.COMPLETED, 2)


async def test_picture_that_the_network_fails_on_fails_its_job_alone(system: System) -> None:
    bad, good = await asyncio.gather(system.begin(UNPAINTABLE), system.begin())
    await until(lambda: {bad, good} <= system.corrected.keys())
    assert (await system.shown(bad))["error"]["code"] == "engine_failed"
    assert (await system.shown(good))["status"] == "completed"
    reply = await system.ask("GET", f"{JOBS}/{bad}/content")
    assert (reply.status, reply.error["code"]) == (409, "image_failed")


async def test_replica_that_stops_finishes_what_it_runs(system: System, engine: PainterEngine) -> None:
    engine.gate.clear()
    job_id = await system.begin()
    await until(lambda: system.driver.overdue_s() > 0)
    stopping = asyncio.create_task(system.worker.stop())
    await until(lambda: system.worker.bench.is_draining)
    engine.gate.set()
    await stopping
    job = await system.jobs.get("local", job_id)
    assert (job.status, job.attempts) == (JobStatus.COMPLETED, 1)
