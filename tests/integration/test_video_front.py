"""From a request to a clip: the front door, the gateway's service, a real Redis, a store of files, a worker."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import av
import pytest
import redis.asyncio as aioredis
from fastapi import FastAPI
from PIL import Image
from prometheus_client import REGISTRY
from vireo_pb.vireo.v1 import vireo_pb2

from loadtest.adversarial.requests import VIDEOS as VIDEOS_PATH
from loadtest.adversarial.requests import hostile
from schedulers.policies.denoising import DenoisingConfig, denoising
from serving.delivery.job.base import JobModel
from serving.delivery.job.service import Jobs, JobServiceConfig
from serving.delivery.pipeline import Pipeline, PipelineLimits
from serving.front.auth import Authenticator
from serving.gateway.grpc import GrpcMethods
from serving.gateway.http import build_http_app
from serving.limits import IngressLimits
from serving.replica.job.checkpoints import Checkpoints
from serving.replica.job.engine import EngineOptions, JobEngine
from serving.replica.job.fake import FakePace, FakeRunner
from serving.replica.job.held import Bench, WorkerConfig
from serving.replica.job.outputs import OutputFiles
from serving.replica.job.worker import Worker
from serving.service import Service
from serving.stores.artefacts import ArtefactStore
from serving.stores.jobs.redis_jobs import RedisJobs, jobs_config
from serving.stores.redis_server import EmbeddedRedis
from serving.tasks.videos.points import VideoPoints
from serving.tasks.videos.resolve import ClipPlanner
from serving.tasks.videos.rules import VIDEOS
from serving.telemetry.metrics import record
from tests.support.clients import Calls, FakeContext, asgi
from tests.support.clip_limits import clip_limits, clip_point
from tests.support.fake_service import FakeFiles, FakeService
from tests.support.fake_videos import make_video_card
from tests.support.memory_results import MemoryResults
from tests.support.redis_server import embedded_redis, stopped
from tests.support.video_clients import Presence, events_of
from tests.support.video_jobs import SECRET
from tests.support.waiting import until

LIMITS = clip_limits()
MODEL = "fake-video"
BODY = {"model": MODEL, "prompt": "a red ball", "num_inference_steps": 8}
JSON = {"content-type": "application/json"}


class System:
    """One gateway and one replica; ``service()`` makes further gateways."""

    def __init__(self, server: EmbeddedRedis, folder: Path, step_s: float) -> None:
        self.server = server
        self.files = ArtefactStore(str(folder))
        self.folder = folder
        self.indexes: list[RedisJobs] = []
        self.engine = JobEngine(
            EngineOptions(family=LIMITS.family, variant=LIMITS.variant),
            lambda: FakeRunner(LIMITS.io, FakePace(step_s=step_s)),
        )
        bench = Bench(
            model=MODEL,
            name="worker",
            engine=self.engine,
            index=self.index(),
            checkpoints=Checkpoints(self.files, SECRET),
            files=OutputFiles(self.files),
            config=WorkerConfig(lease_s=0.6, poll_s=0.02, preview_every_s=0.02),
            tell=record,
        )
        self.worker = Worker(bench, denoising(DenoisingConfig(max_batch=2, max_units=4)), LIMITS.io.request)
        self.app, self.grpc = self.gateway()

    def index(self) -> RedisJobs:
        self.indexes.append(RedisJobs(jobs_config(self.server.url), secret=SECRET, restart_grace_s=0.0))
        return self.indexes[-1]

    def gateway(self) -> tuple[FastAPI, Calls]:
        points = tuple(
            clip_point(steps, quality, sampler="euler_ancestral", step_s=0.02, fixed_s=0.1)
            for steps, quality in ((50, 0.9), (6, 0.6))
        )
        card = make_video_card()
        planner = ClipPlanner(card=card, limits=LIMITS, points=VideoPoints(points=points, limits=LIMITS))
        config = JobServiceConfig(max_queued=10, secret=b"s", poll_s=0.01)
        results: Any = MemoryResults()
        pipeline = Pipeline(results, PipelineLimits(max_in_flight=64, default_deadline_s=30.0))
        videos = Jobs(VIDEOS, {MODEL: JobModel(card=card, plan=planner)}, self.index(), self.files, pipeline, config)
        service = Service(FakeService(), FakeService(), videos, videos, FakeFiles())
        door, front = Authenticator({}, True), IngressLimits()
        app = build_http_app(service, door, front, lambda: b"")
        return app, Calls(GrpcMethods(service=service, authenticator=door, limits=front))


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedRedis]:
    with embedded_redis() as server:
        yield server


@pytest.fixture
async def system(server: EmbeddedRedis, tmp_path: Path) -> AsyncIterator[System]:
    client = aioredis.Redis.from_url(server.url)
    await client.flushall()
    await client.aclose()
    system = System(server, tmp_path / "clips", step_s=0.03)
    await system.engine.start()
    await system.worker.start()
    yield system
    await system.worker.stop()
    await system.engine.stop()
    for index in system.indexes:
        await index.stop()
    system.files.close()


def num_frames_of(data: bytes) -> int:
    opened: Any = av.open(io.BytesIO(data))
    with opened as container:
        return sum(1 for _ in container.decode(container.streams.video[0]))


async def create(system: System, **headers: str) -> dict[str, Any]:
    reply = await asgi(system.app, "POST", "/v1/videos", json.dumps(BODY).encode(), JSON | headers)
    assert reply.status == 200, reply.body
    document: dict[str, Any] = reply.json
    return document


async def test_life_of_a_clip_over_http(system: System) -> None:
    job = await create(system)
    path = f"/v1/videos/{job['id']}"
    events = events_of((await asgi(system.app, "GET", f"{path}/events", receive=Presence().receive)).body)
    assert events[-1][0] == "completed"
    steps = [data["vireo"]["step"] for _, data in events]
    assert steps == sorted(steps)
    assert len(set(steps)) > 2
    assert any((data["preview"] or "").startswith("data:image/jpeg;base64,/9j/") for _, data in events)
    done = (await asgi(system.app, "GET", path)).json
    assert (done["status"], done["progress"], done["vireo"]["settings"]["num_inference_steps"]) == ("completed", 100, 8)
    assert done["vireo"]["compute_ms"] > 0
    assert done["expires_at"] > done["completed_at"]
    clip = await asgi(system.app, "GET", f"{path}/content")
    assert num_frames_of(clip.body) == 29
    assert clip.headers["etag"].strip('"') == hashlib.sha256(clip.body).hexdigest()
    part = await asgi(system.app, "GET", f"{path}/content", b"", {"range": "bytes=-10"})
    assert (part.status, part.body) == (206, clip.body[-10:])
    thumbnail = await asgi(system.app, "GET", f"{path}/content?variant=thumbnail")
    assert Image.open(io.BytesIO(thumbnail.body)).size == (64, 64)
    assert (await asgi(system.app, "GET", "/v1/videos")).json["data"] == [done]
    assert (await asgi(system.app, "DELETE", path)).json["deleted"]
    assert (await asgi(system.app, "GET", path)).status == 404
    assert not [file for file in system.folder.rglob("*") if file.is_file()]


async def test_clip_over_grpc(system: System) -> None:
    request = vireo_pb2.GenerateVideoRequest(prompt="a red ball", num_inference_steps=8)
    responses = [one async for one in system.grpc.GenerateVideo(request, FakeContext())]
    data = b"".join(one.content.data for one in responses)
    assert num_frames_of(data) == 29
    assert responses[-1].end.sha256 == hashlib.sha256(data).hexdigest()
    assert responses[-1].end.vireo.compute_ms > 0
    assert max(one.progress.step for one in responses) == 8


def num_degraded(reason: str) -> float:
    return REGISTRY.get_sample_value("vireo_degraded_total", {"model": MODEL, "reason": reason}) or 0.0


async def test_clip_at_a_lower_point_is_counted_whatever_surface_asked_for_it(system: System) -> None:
    """Six steps take 1.3 J, fifty 6.6 J."""
    counts = [num_degraded("energy")]
    body = json.dumps({"model": MODEL, "prompt": "a red ball", "vireo": {"energy_j": 2.0}}).encode()
    over_http = await asgi(system.app, "POST", "/v1/videos/sync", b"", JSON, receive=Presence(body).receive)
    assert over_http.status == 200, over_http.body
    counts.append(num_degraded("energy"))
    request = vireo_pb2.GenerateVideoRequest(prompt="a red ball", vireo=vireo_pb2.Budget(energy_j=2.0))
    responses = [one async for one in system.grpc.GenerateVideo(request, FakeContext())]
    assert list(responses[-1].end.vireo.degraded) == ["energy"]
    counts.append(num_degraded("energy"))
    assert counts == [counts[0], counts[0] + 1, counts[0] + 2]


async def test_caller_that_leaves_frees_the_engine(system: System) -> None:
    presence = Presence(json.dumps(BODY | {"num_inference_steps": 100}).encode())
    asking = asyncio.create_task(asgi(system.app, "POST", "/v1/videos/sync", b"", JSON, receive=presence.receive))
    await until(lambda: system.engine.held_bytes() > 0)
    presence.left.set()
    assert (await asking).status == 499
    await until(lambda: system.worker.num_held == 0)
    assert system.engine.held_bytes() == 0
    (job,) = (await asgi(system.app, "GET", "/v1/videos")).json["data"]
    assert (job["status"], job["error"]["code"]) == ("failed", "cancelled")


async def test_request_that_is_sent_to_two_gateways_is_one_job(system: System) -> None:
    other, _ = system.gateway()
    body, headers = json.dumps(BODY).encode(), JSON | {"idempotency-key": "k"}
    replies = await asyncio.gather(
        *(asgi(app, "POST", "/v1/videos", body, headers) for app in (system.app, other, system.app, other))
    )
    assert [reply.status for reply in replies] == [200] * 4
    assert len({reply.json["id"] for reply in replies}) == 1
    assert len((await asgi(system.app, "GET", "/v1/videos")).json["data"]) == 1


async def test_nothing_is_accepted_while_redis_is_away(system: System) -> None:
    with stopped(system.server):
        reply = await asgi(system.app, "POST", "/v1/videos", json.dumps(BODY).encode(), JSON)
        assert (reply.status, reply.error["code"]) == (503, "store_unavailable")
        assert "retry-after" in reply.headers
        assert (await asgi(system.app, "GET", "/v1/videos")).status == 503

    async def answers() -> bool:
        return (await asgi(system.app, "GET", "/v1/videos")).status == 200

    await until(answers)


async def test_parameters_of_an_attacker_are_refused_before_any_work(system: System) -> None:
    sent = [one for one in hostile(clips=MODEL) if one.path == VIDEOS_PATH]
    assert len(sent) > 60
    for one in sent:
        reply = await asgi(system.app, "POST", one.path, one.body, JSON)
        assert 400 <= reply.status < 500, one.what
        assert reply.error["code"], one.what
    assert (await asgi(system.app, "GET", "/v1/videos")).json["data"] == []
    assert system.engine.held_bytes() == 0
