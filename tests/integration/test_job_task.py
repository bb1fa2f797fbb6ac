"""A task that is not video, as a codec alone: jobs are admitted, claimed, made, settled and fetched on a real Redis."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis.asyncio as aioredis
from fastapi import FastAPI
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from PIL import Image

from schedulers.admission import Cost
from schedulers.policies.denoising import DenoisingConfig, denoising
from serving.delivery.job.base import report_of
from serving.delivery.job.service import Jobs, JobServiceConfig
from serving.delivery.pipeline import Pipeline, PipelineLimits
from serving.energy.choose import AbsentMeter
from serving.energy.replica import ReplicaEnergy
from serving.errors import StoreUnavailable
from serving.front.auth import Authenticator
from serving.gateway import http as gateway_http
from serving.limits import IngressLimits
from serving.replica.job.checkpoints import Checkpoints
from serving.replica.job.engine import EngineOptions, JobEngine
from serving.replica.job.held import Bench, WorkerConfig
from serving.replica.job.outputs import OutputFiles
from serving.replica.job.worker import Worker
from serving.service import Service
from serving.stores.artefacts import ArtefactStore
from serving.stores.jobs.base import MAX_PAYLOAD_BYTES, JobStatus
from serving.stores.jobs.redis_jobs import RedisJobs, jobs_config
from serving.stores.jobs.settler import JobSettler
from serving.stores.redis_server import EmbeddedRedis
from serving.telemetry import tracing
from serving.telemetry.events import EnergySpent, Event
from tests.support import dots
from tests.support.clients import HttpReply, asgi
from tests.support.fake_service import FakeFiles, FakeService
from tests.support.memory_results import MemoryResults
from tests.support.redis_server import embedded_redis
from tests.support.video_clients import Presence, events_of
from tests.support.video_jobs import SECRET, video_job
from tests.support.waiting import until

JSON = {"content-type": "application/json"}
RED = {"colour": [255, 0, 0], "dots": 6}
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Accounts:
    """What jobs were corrected to."""

    def __init__(self) -> None:
        self.corrected: dict[str, tuple[str, Cost, Cost]] = {}

    def settle_job(self, tenant: str, job_id: str, charged: Cost, actual: Cost) -> None:
        self.corrected[job_id] = (tenant, charged, actual)

    async def correct_job(self, tenant: str, job_id: str, charged: Cost, actual: Cost) -> None:
        self.settle_job(tenant, job_id, charged, actual)


WATTS = 7.0


class System:
    """A gateway and a replica of dots."""

    def __init__(self, index: RedisJobs, files: ArtefactStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.index, self.accounts, self.results = index, Accounts(), MemoryResults()
        self.told: list[Event] = []
        results: Any = self.results
        pipeline = Pipeline(results, PipelineLimits(max_in_flight=8, default_deadline_s=30.0))
        config = JobServiceConfig(max_queued=10, secret=b"s", poll_s=0.01)
        self.jobs = Jobs(dots.DOTS, {dots.CARD.id: dots.MODEL}, index, files, pipeline, config)
        monkeypatch.setattr(gateway_http, "ROUTES", dots.routes_of(self.jobs))
        monkeypatch.setattr(gateway_http, "document", gateway_http.document.__wrapped__)  # the kept one is of all tasks
        service = Service(FakeService(), FakeService(), self.jobs, self.jobs, FakeFiles())
        self.app: FastAPI = gateway_http.build_http_app(service, Authenticator({}, True), IngressLimits(), lambda: b"")
        bench = Bench(
            model=dots.CARD.id,
            name="replica",
            engine=JobEngine(EngineOptions(family=dots.FAMILY, variant=dots.FAMILY.variants[0]), dots.DotsRunner),
            index=index,
            checkpoints=Checkpoints(files, SECRET),
            files=OutputFiles(files),
            config=WorkerConfig(lease_s=0.6, poll_s=0.02),
            settle=self.accounts.settle_job,
            energy=ReplicaEnergy(None, watts=WATTS),
            tell=self.told.append,
        )
        self.worker = Worker(bench, denoising(DenoisingConfig(max_batch=2, max_units=4)), dots.DotsRequest)

    async def ask(self, method: str, path: str = "", body: Any = None, **headers: str) -> HttpReply:
        sent = b"" if body is None else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await asgi(self.app, method, f"/v1/dots{path}", b"", JSON | named, receive=Presence(sent).receive)


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedRedis]:
    with embedded_redis() as server:
        yield server


@pytest.fixture
async def system(server: EmbeddedRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[System]:
    async with aioredis.Redis.from_url(server.url) as client:
        await client.flushall()
    index, files = RedisJobs(jobs_config(server.url), secret=SECRET, restart_grace_s=0.0), ArtefactStore(str(tmp_path))
    system = System(index, files, monkeypatch)
    await system.worker.bench.engine.start()
    await system.worker.start()
    yield system
    await system.worker.stop()
    await system.worker.bench.engine.stop()
    await index.stop()
    files.close()


def pixels_of(png: bytes) -> Any:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.asarray(image)


async def test_job_is_made_watched_fetched_and_charged_for_what_it_took(system: System) -> None:
    made = await system.ask("POST", body=RED, host="vireo.localhost")
    assert made.status == 200, made.body
    job_id = made.json["id"]
    assert job_id.startswith("dotted_")
    events = events_of((await system.ask("GET", f"/{job_id}/events")).body)
    assert events[-1][0] == "completed"
    shown = (await system.ask("GET", f"/{job_id}", host="vireo.localhost")).json
    assert (shown["status"], shown["colour"], shown["dots"]) == ("completed", [255, 0, 0], 6)
    assert shown["url"] == f"http://vireo.localhost/v1/dots/{job_id}/content"
    content = await system.ask("GET", f"/{job_id}/content")
    assert content.headers["content-type"] == "image/png"
    assert (pixels_of(content.body) == (255, 0, 0)).all(-1).sum() == 6
    part = await system.ask("GET", f"/{job_id}/content", range="bytes=0-7")
    assert (part.status, part.body) == (206, content.body[:8])
    job = await system.jobs.get("local", job_id)
    assert (job.task, job.step, job.num_steps, job.checkpoint) == ("dots", 6, 6, "0" * 64)
    assert job.report["coverage"] == pytest.approx(1 / 64)
    tenant, charged, actual = system.accounts.corrected[job_id]
    assert (tenant, charged) == (job.owner, Cost(3.0, 0.5))
    assert actual.seconds == pytest.approx(job.report["compute_ms"] / 1e3)
    assert (job.report["energy_j"], job.report["energy_source"]) == (pytest.approx(WATTS * actual.seconds), "estimate")
    assert actual.joules == job.report["energy_j"]
    (spent,) = [event for event in system.told if isinstance(event, EnergySpent)]
    assert (spent.tenant, spent.point, spent.joules) == (job.owner, job.operating_point, actual.joules)


async def test_without_a_reading_joules_are_unknown_and_the_declared_power_is_charged(system: System) -> None:
    system.worker.bench.energy = ReplicaEnergy(AbsentMeter("nvml"), watts=WATTS)
    made = await system.ask("POST", body=RED)
    assert events_of((await system.ask("GET", f"/{made.json['id']}/events")).body)[-1][0] == "completed"
    job = await system.jobs.get("local", made.json["id"])
    report = report_of(job)
    assert (report.energy_j, report.energy_source) == (None, "nvml")
    _, _, actual = system.accounts.corrected[job.id]
    assert actual.joules == pytest.approx(WorkerConfig().watts * actual.seconds)
    assert job.taken == actual
    assert [event.source for event in system.told if isinstance(event, EnergySpent)] == ["estimate"]


async def test_a_caller_that_leaves_while_its_job_is_queued_is_charged_for_it(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    queued, may_answer, create = asyncio.Event(), asyncio.Event(), system.index.create

    async def slow(*args: Any, **options: Any) -> None:
        await create(*args, **options)
        queued.set()
        await may_answer.wait()

    monkeypatch.setattr(system.index, "create", slow)
    asking = asyncio.create_task(system.ask("POST", body=RED))
    await queued.wait()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert list(system.results.open.values()) == [Cost(3.0, 0.5)], "it is not known yet what becomes of it"
    may_answer.set()
    await until(lambda: not system.results.open)
    assert system.results.settled == [Cost(3.0, 0.5)]
    (job,) = (await system.jobs.page("local", after=None, limit=9, newest_first=True)).jobs
    assert job.charged == Cost(3.0, 0.5)


async def test_a_job_of_which_nobody_knows_whether_it_was_queued_is_not_paid_for(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = system.index.create

    async def unheard(*args: Any, **options: Any) -> None:
        await create(*args, **options)
        raise StoreUnavailable("the answer was lost")

    monkeypatch.setattr(system.index, "create", unheard)
    assert (await system.ask("POST", body=RED)).status == 503
    (job,) = (await system.jobs.page("local", after=None, limit=9, newest_first=True)).jobs
    assert system.results.settled == [Cost(0.0, 0.0)]
    assert system.results.settled_jobs == [("local", job.id, Cost(3.0, 0.5), Cost(3.0, 0.5))], "as it is, for good"


async def test_waiting_call_is_answered_with_the_file(system: System) -> None:
    reply = await system.ask("POST", "/sync", RED)
    assert reply.status == 200, reply.body
    assert pixels_of(reply.body).shape == (8, 8, 3)


async def test_same_key_is_the_same_job_and_another_request_with_it_is_refused(system: System) -> None:
    first, again = [await system.ask("POST", body=RED, idempotency_key="k") for _ in range(2)]
    assert first.json["id"] == again.json["id"]
    other = await system.ask("POST", body=RED | {"dots": 7}, idempotency_key="k")
    assert other.error["code"] == "idempotency_key_reused"
    assert "different: dots." in other.error["message"]


async def test_jobs_of_other_tasks_are_neither_listed_nor_shown(system: System) -> None:
    made = await system.ask("POST", body=RED)
    job = await system.jobs.get("local", made.json["id"])
    await system.index.create(video_job("video_a", owner=job.owner), max_queued=9)
    listed = (await system.ask("GET")).json
    assert [one["id"] for one in listed["data"]] == [job.id]
    for method in ("GET", "DELETE"):
        assert (await system.ask(method, "/video_a")).status == 404
    kept = await system.index.get(job.owner, "video_a")
    assert kept is not None
    assert kept.status is JobStatus.QUEUED


async def test_what_the_family_refuses_fails_the_job_by_the_name_of_the_setting(system: System) -> None:
    made = await system.ask("POST", body=RED | {"dots": 65})
    async for update in system.jobs.watch("local", made.json["id"]):
        job = update.job
    assert job.error is not None
    assert (job.error.code, job.attempts) == ("invalid_request", 1)
    assert "dots is 65" in job.error.message
    assert await JobSettler(system.index, system.accounts, older_than_s=0.0).settle() == 1
    assert system.accounts.corrected[job.id][2].seconds == 0.0


async def test_payload_that_this_model_does_not_read_fails_the_job(system: System) -> None:
    foreign = replace(video_job("x", model=dots.CARD.id), task="dots", payload=b'{"prompt":"a ball"}')
    await system.index.create(foreign, max_queued=9)
    async for update in system.jobs.watch(foreign.owner, "x"):
        job = update.job
    assert job.error is not None
    assert (job.error.code, job.attempts) == ("engine_failed", 2)
    assert "a form that this model does not read" in job.error.message


async def test_record_has_room_for_a_request_and_not_for_a_film(system: System) -> None:
    large = replace(video_job("x"), payload=bytes(MAX_PAYLOAD_BYTES + 1))
    with pytest.raises(ValueError, match="payload of"):
        await system.index.create(large, max_queued=9)


async def test_replica_that_claims_a_job_goes_on_with_the_trace_of_its_request(system: System) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.use(provider)
    try:
        assert (await system.ask("POST", "/sync", RED, traceparent=TRACE)).status == 200
        await system.worker.bench.end_tasks()
    finally:
        tracing.use(None)
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert {"front", "plan", "queue", "run", "settle"} <= spans.keys()
    assert {span.context.trace_id for span in spans.values()} == {int(TRACE.split("-")[1], 16)}
    front = spans["front"].context.span_id
    assert all(spans[name].parent.span_id == front for name in ("plan", "queue", "run", "settle"))
