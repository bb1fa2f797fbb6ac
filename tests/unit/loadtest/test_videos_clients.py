"""The clients that ask for clips: a file from a scripted server, and a real gRPC server."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from vireo_pb.vireo.v1 import vireo_pb2, vireo_pb2_grpc

from loadtest.clients.base import Budget, Client, Filming, Reply
from loadtest.clients.grpc_videos import GrpcVideosClient
from loadtest.clients.http_videos import HttpVideosClient
from loadtest.records import Outcome
from loadtest.scenario import Scenario
from loadtest.workloads.mix import build_load
from tests.unit.loadtest.builders import make_payload, served_grpc
from tests.unit.loadtest.test_http_clients import scripted

SETTINGS: dict[str, bool | int | float | str] = {"num_inference_steps": 4, "attention": "dense"}
FILMING = Filming(prompt="a red circle", seed=5, size="64x32", num_frames=29, settings=SETTINGS)
FRAME, CLIP = b"a picture", b"clip" * 100


async def call(client: Client, **fields: Any) -> Reply:
    try:
        await client.start()
        return await client.send(client.prepare(make_payload(**{"images": (), "filming": FILMING, **fields})))
    finally:
        await client.close()


async def test_a_request_over_http_is_what_the_api_says() -> None:
    async with scripted() as script:
        script.answers(200, CLIP, "content-type: video/mp4")
        client = HttpVideosClient(script.url, api_keys={"a": "KEY"})
        reply = await call(client, model="m", tenant="a", images=(FRAME,), budget=Budget(latency_ms=50.0))
        await call(HttpVideosClient(script.url), filming=Filming(prompt="p", seed=0))
    assert script.heads[0].startswith("POST /v1/videos/sync HTTP/1.1\r\n")
    assert "authorization: Bearer KEY\r\n" in script.heads[0]
    asked, plain = script.bodies
    head, _, data = asked.pop("input_reference").partition(";base64,")
    assert (head[:5], base64.b64decode(data)) == ("data:", FRAME)
    vireo = {"latency_ms": 50.0, "settings": SETTINGS}
    assert asked == {
        "model": "m", "prompt": "a red circle", "seed": 5, "size": "64x32", "num_frames": 29, "vireo": vireo
    }  # fmt: skip
    assert plain.keys() == {"model", "prompt", "seed"}
    assert (reply.outcome, reply.status, reply.response_bytes) == (Outcome.OK, "200", len(CLIP))


@pytest.mark.parametrize(("body", "media_type"), [(b"", "video/mp4"), (b'{"id": "video_1"}', "application/json")])
async def test_an_answer_that_is_no_file_is_a_protocol_error(body: bytes, media_type: str) -> None:
    async with scripted() as script:
        script.answers(200, body, f"content-type: {media_type}")
        assert (await call(HttpVideosClient(script.url))).outcome is Outcome.PROTOCOL_ERROR


async def test_a_refusal_keeps_its_code() -> None:
    async with scripted() as script:
        script.answers(429, {"error": {"code": "queue_full", "message": "m"}}, "retry-after: 3")
        reply = await call(HttpVideosClient(script.url))
    assert (reply.outcome, reply.error_code, reply.retry_after_s) == (Outcome.REJECTED, "queue_full", 3.0)


def test_a_payload_without_a_filming_is_refused() -> None:
    for client in (HttpVideosClient("http://127.0.0.1:1"), GrpcVideosClient("127.0.0.1:1")):
        with pytest.raises(ValueError, match="filming"):
            client.prepare(make_payload())


class Servicer(vireo_pb2_grpc.VireoServicer):
    def __init__(self, *, num_bytes: int = len(CLIP), fails: bool = False, has_end: bool = True) -> None:
        self.num_bytes, self.fails, self.has_end = num_bytes, fails, has_end
        self.requests: list[Any] = []

    async def GenerateVideo(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.requests.append(request)
        response = vireo_pb2.GenerateVideoResponse
        yield response(progress=vireo_pb2.JobProgress(percent=50))
        if self.fails:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "as planned")
        for part in (CLIP[:100], CLIP[100:]):
            yield response(content=vireo_pb2.VideoContent(data=part))
        if self.has_end:
            report = vireo_pb2.Report(operating_point="quick")
            yield response(end=vireo_pb2.VideoEnd(num_bytes=self.num_bytes, vireo=report))


async def call_grpc(servicer: Servicer, **fields: Any) -> Reply:
    async with served_grpc(servicer) as address:
        return await call(GrpcVideosClient(address), **fields)


async def test_grpc_sends_what_http_sends() -> None:
    servicer = Servicer()
    reply = await call_grpc(servicer, model="m", images=(FRAME,), budget=Budget(latency_ms=50.0))
    (request,) = servicer.requests
    assert (request.model, request.prompt, request.seed, request.image) == ("m", "a red circle", 5, FRAME)
    assert (request.width, request.height, request.num_frames, request.vireo.latency_ms) == (64, 32, 29, 50.0)
    sent = {name: getattr(value, value.WhichOneof("value")) for name, value in request.vireo.settings.items()}
    assert sent == SETTINGS
    assert (reply.outcome, reply.first_chunk_at_s is not None) == (Outcome.OK, True)
    assert reply.server is not None
    assert reply.server.operating_point == "quick"


async def test_a_grpc_call_that_fails_or_brings_too_little_is_an_outcome() -> None:
    assert (await call_grpc(Servicer(num_bytes=len(CLIP) + 1))).outcome is Outcome.PROTOCOL_ERROR
    assert (await call_grpc(Servicer(has_end=False))).outcome is Outcome.PROTOCOL_ERROR
    failed = await call_grpc(Servicer(fails=True))
    assert (failed.outcome, failed.status) == (Outcome.REJECTED, "RESOURCE_EXHAUSTED")


def test_mix_asks_for_clips_with_seeds_and_first_frames_of_their_own() -> None:
    film = {"model": "exvideo-nano", "prompts": [""], "has_first_frame": True, "num_frames": 8}
    phase = {"name": "all", "arrival": {"kind": "uniform", "rate_per_s": 10}, "duration_s": 4}
    scenario = Scenario.model_validate(
        {
            "name": "clips",
            "phases": [phase],
            "images": {"bad_share": 0.3},
            "mix": [{"surface": "http_videos"}, {"surface": "grpc_videos", "film": film}],
            "slo": {"deadline_ms": 1000},
        }
    )
    (load,) = build_load(scenario)
    words = [one for one in load.payloads if one.surface == "http_videos"]
    frames = [one for one in load.payloads if one.surface == "grpc_videos"]
    bad = [one for one in frames if one.expects_error]
    assert all(one.filming is not None and one.filming.prompt and not one.images for one in words)
    assert {one.model for one in words} == {"vdit-nano"}
    assert all(len(one.images) == 1 and one.filming is not None and one.filming.num_frames == 8 for one in frames)
    assert 0 < len(bad) < len(frames)
    assert not any(one.expects_error for one in words)
    assert len({one.filming.seed for one in load.payloads if one.filming}) == len(load.payloads)
    assert len({one.images for one in frames if not one.expects_error}) == len(frames) - len(bad)
