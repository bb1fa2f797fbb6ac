"""The clients that ask for pictures: OpenAI's shape from a scripted server, and a real gRPC server."""

from __future__ import annotations

import base64
from typing import Any

import grpc
import pytest
from vireo_pb.vireo.v1 import vireo_pb2, vireo_pb2_grpc

from loadtest.clients.base import Budget, Client, Drawing, Reply
from loadtest.clients.grpc_images import GrpcImagesClient
from loadtest.clients.http_images import HttpImagesClient
from loadtest.records import Outcome
from tests.unit.loadtest.builders import make_payload, served_grpc
from tests.unit.loadtest.test_http_clients import scripted

SETTINGS: dict[str, bool | int | float | str] = {"k0": 1, "guidance_scale": 2.0, "is_fast": True, "sampler": "euler"}
DRAWING = Drawing(prompt="a green 7", n=2, seed=5, size="64x64", settings=SETTINGS)
PICTURE = base64.b64encode(b"png").decode()
REPORT = {"operating_point": "k0=1", "cache": "miss"}


async def call(client: Client, **fields: Any) -> Reply:
    try:
        await client.start()
        return await client.send(client.prepare(make_payload(**{"images": (), "drawing": DRAWING, **fields})))
    finally:
        await client.close()


async def test_a_request_over_http_is_what_the_api_says() -> None:
    async with scripted() as script:
        script.answers(200, {"data": [{"b64_json": PICTURE}, {"b64_json": PICTURE}], "vireo": REPORT})
        client = HttpImagesClient(script.url, api_keys={"a": "KEY"})
        reply = await call(client, model="m", tenant="a", budget=Budget(latency_ms=50.0))
        await call(HttpImagesClient(script.url), drawing=Drawing(prompt="p", n=1, seed=0))
    assert script.heads[0].startswith("POST /v1/images/generations HTTP/1.1\r\n")
    assert "authorization: Bearer KEY\r\n" in script.heads[0]
    asked, plain = script.bodies
    vireo = {"background": False, "latency_ms": 50.0, "settings": SETTINGS}
    assert asked == {"model": "m", "prompt": "a green 7", "n": 2, "seed": 5, "size": "64x64", "vireo": vireo}
    assert (plain["n"], plain["seed"], plain["vireo"], "size" in plain) == (1, 0, {"background": False}, False)
    assert (reply.outcome, reply.status) == (Outcome.OK, "200")
    assert reply.server is not None
    assert (reply.server.operating_point, reply.server.cache) == ("k0=1", "miss")


@pytest.mark.parametrize(
    "body",
    [{"data": [{"b64_json": PICTURE}]}, {"data": [{"b64_json": PICTURE}, {}]}, {"id": "image_1"}, []],
    ids=["too few", "an empty one", "a job", "no object"],
)
async def test_an_answer_without_its_pictures_is_a_protocol_error(body: Any) -> None:
    async with scripted() as script:
        script.answers(200, body)
        assert (await call(HttpImagesClient(script.url))).outcome is Outcome.PROTOCOL_ERROR


async def test_a_refusal_keeps_its_code() -> None:
    async with scripted() as script:
        script.answers(429, {"error": {"code": "quota_exhausted", "message": "m"}}, "retry-after: 3")
        reply = await call(HttpImagesClient(script.url))
    assert (reply.outcome, reply.error_code, reply.retry_after_s) == (Outcome.REJECTED, "quota_exhausted", 3.0)


def test_a_payload_without_a_drawing_is_refused() -> None:
    for client in (HttpImagesClient("http://127.0.0.1:1"), GrpcImagesClient("127.0.0.1:1")):
        with pytest.raises(ValueError, match="drawing"):
            client.prepare(make_payload())


class Servicer(vireo_pb2_grpc.VireoServicer):
    def __init__(self, response: Any) -> None:
        self.response = response
        self.requests: list[Any] = []

    async def GenerateImage(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        if isinstance(self.response, grpc.StatusCode):
            await context.abort(self.response, "as planned")
        return self.response


async def call_grpc(servicer: Servicer, **fields: Any) -> Reply:
    async with served_grpc(servicer) as address:
        return await call(GrpcImagesClient(address), **fields)


async def test_grpc_sends_what_http_sends() -> None:
    servicer = Servicer(vireo_pb2.ImageResponse(images=[b"a", b"b"], vireo=vireo_pb2.Report(operating_point="k0=1")))
    reply = await call_grpc(servicer, model="m", budget=Budget(latency_ms=50.0))
    (request,) = servicer.requests
    assert (request.model, request.prompt, request.n, request.seed, request.size) == ("m", "a green 7", 2, 5, "64x64")
    assert request.vireo.latency_ms == 50.0
    sent = {name: getattr(value, value.WhichOneof("value")) for name, value in request.vireo.settings.items()}
    assert sent == SETTINGS
    assert request.vireo.settings["is_fast"].WhichOneof("value") == "bool_value"
    assert reply.outcome is Outcome.OK
    assert reply.server is not None
    assert reply.server.operating_point == "k0=1"


async def test_a_grpc_call_that_fails_or_brings_too_little_is_an_outcome() -> None:
    assert (await call_grpc(Servicer(vireo_pb2.ImageResponse(images=[b"a"])))).outcome is Outcome.PROTOCOL_ERROR
    failed = await call_grpc(Servicer(grpc.StatusCode.RESOURCE_EXHAUSTED))
    assert (failed.outcome, failed.status) == (Outcome.REJECTED, "RESOURCE_EXHAUSTED")
