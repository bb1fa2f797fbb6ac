"""HAProxy's gRPC front end as the wrapper leaves it, before a gateway that notes every call that comes through."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from grpc import StatusCode
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from vireo_pb.vireo.v1 import vireo_pb2

from serving.config import from_mapping, resolve
from serving.front.auth import Authenticator
from serving.front.grpc.registration import (
    SERVICES,
    add_health_to_server,
    add_inference_to_server,
    add_reflection_to_server,
    add_reflection_v1_to_server,
    add_vireo_to_server,
    is_unary,
    methods_of,
    needs_key,
    path_of,
)
from serving.system import haproxy
from serving.system.haproxy_callers import WORK_RPCS
from tests.support.clients import FrontDoor
from tests.support.fake_service import CHAT_MODEL, FakeService
from tests.support.ports import free_port
from tests.support.system import short_folder
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(120)

KEY = "key-of-ada"
HASH, OTHER_HASH = (hashlib.sha256(key.encode()).hexdigest() for key in (KEY, "key-of-bob"))
PLACES = 2
METHODS = [method for service in SERVICES for method in methods_of(service)]
RAYS_CONFIG = """global
    maxconn 100
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend grpc_frontend
    bind 127.0.0.1:{port} proto h2
    mode http
    acl is_healthz path /ray.serve.RayServeAPIService/Healthz
    http-request return status 200 content-type application/grpc hdr grpc-status 0 if is_healthz
    acl is_grpc-vireo req.hdr(application) -m str vireo
    use_backend gateways if is_grpc-vireo
    use_backend default_grpc_backend if {{ req.hdr(application) -m found }}
    default_backend gateways
backend default_grpc_backend
    http-request return status 200 content-type application/grpc hdr grpc-status 5 hdr grpc-message "%[path] not found"
backend gateways
    mode http
    server gateway 127.0.0.1:{backend} proto h2
"""


@dataclass
class Door:
    """Where HAProxy listens, and the paths of the calls that it let through."""

    channel: grpc.aio.Channel
    came: list[str]
    metadata: dict[str, str | bytes]
    """Of the last call that came through."""
    port: int

    async def call(
        self, path: str, data: bytes = b"", metadata: list[tuple[str, str]] | None = None, **options: Any
    ) -> grpc.aio.AioRpcError | bytes:
        """Make a call with one message; every method can be called as one that streams its answers."""
        try:
            call = self.channel.unary_stream(path)(data, metadata=metadata, timeout=20, **options)
            async for answer in call:
                call.cancel()  # a watch has no end
                return answer  # type: ignore[no-any-return]
            return b""
        except grpc.aio.AioRpcError as error:
            return error


class Noted(grpc.aio.ServerInterceptor):
    """Notes the path of each call."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.metadata: dict[str, str | bytes] = {}

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        self.paths.append(details.method)
        self.metadata.clear()
        self.metadata.update(details.invocation_metadata)
        return await continuation(details)


@contextmanager
def haproxy_before(backend: int, has_keys: bool) -> Iterator[int]:
    """HAProxy with the edited configuration. Yields its port."""
    settings: dict[str, Any] = {"limits": {"body_timeout_s": 2.0}, "gateway": {"max_in_flight": PLACES}}
    if has_keys:
        settings["tenants"] = [{"name": "ada", "api_key_sha256": [HASH]}]
    with short_folder() as folder:
        script = haproxy.write_wrapper(resolve(from_mapping({"run_dir": str(folder), **settings})), folder)
        port, path = free_port(), folder / "haproxy.cfg"
        path.write_text(RAYS_CONFIG.format(port=port, backend=backend))
        process = subprocess.Popen([script, "-db", "-f", path])
        try:
            yield port
        finally:
            process.kill()
            process.wait()


async def opened(has_keys: bool, service: FakeService | None = None) -> AsyncIterator[Door]:
    keys = {"ada": HASH, "bob": OTHER_HASH} if has_keys else {}
    front = FrontDoor(service or FakeService(), authenticator=Authenticator(keys, not has_keys))
    noted = Noted()
    server = grpc.aio.server(interceptors=[noted])
    for add in (
        add_vireo_to_server,
        add_inference_to_server,
        add_health_to_server,
        add_reflection_to_server,
        add_reflection_v1_to_server,
    ):
        add(front.methods, server)
    backend = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with haproxy_before(backend, has_keys) as port:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await asyncio.wait_for(channel.channel_ready(), 20)
            yield Door(channel, noted.paths, noted.metadata, port)
    await server.stop(None)


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    async for door in opened(has_keys=True):
        yield door


@pytest.fixture
async def keyless_door() -> AsyncIterator[Door]:
    async for door in opened(has_keys=False):
        yield door


def refused(answer: grpc.aio.AioRpcError | bytes) -> tuple[StatusCode, str]:
    """Status and code of a refusal, in the shape that every error has."""
    assert isinstance(answer, grpc.aio.AioRpcError), answer
    trailers = {**dict(answer.initial_metadata()), **dict(answer.trailing_metadata())}
    error = json.loads(trailers["vireo-error-bin"])
    assert trailers["x-request-id"]
    assert error["message"] == answer.details()
    return answer.code(), error["code"]


@pytest.mark.parametrize("method", METHODS, ids=path_of)
async def test_call_without_a_key_ends_at_the_door(method: MethodDescriptor, door: Door) -> None:
    answer = await door.call(path_of(method))
    if needs_key(method):
        assert refused(answer) == (StatusCode.UNAUTHENTICATED, "invalid_api_key")
        assert door.came == []
    else:
        assert not isinstance(answer, grpc.aio.AioRpcError), answer
        assert door.came == [path_of(method)]


@pytest.mark.parametrize("header", [("authorization", f"Bearer {KEY}"), ("x-api-key", KEY)])
async def test_call_with_a_key_goes_through(header: tuple[str, str], door: Door) -> None:
    assert not isinstance(
        await door.call("/inference.GRPCInferenceService/ServerMetadata", metadata=[header]), grpc.aio.AioRpcError
    )


async def test_without_keys_nobody_is_asked_for_one(keyless_door: Door) -> None:
    answer = await keyless_door.call("/inference.GRPCInferenceService/ServerMetadata")
    assert not isinstance(answer, grpc.aio.AioRpcError), answer


@pytest.mark.parametrize("method", METHODS, ids=path_of)
async def test_compressed_call_ends_at_the_door(method: MethodDescriptor, door: Door) -> None:
    answer = await door.call(path_of(method), bytes(1000), [("x-api-key", KEY)], compression=grpc.Compression.Gzip)
    assert refused(answer) == (StatusCode.UNIMPLEMENTED, "unsupported_encoding")
    assert isinstance(answer, grpc.aio.AioRpcError)
    assert dict(answer.trailing_metadata()).get("grpc-accept-encoding", "identity") == "identity"
    assert door.came == []


@pytest.mark.parametrize("method", [method for method in METHODS if not needs_key(method)], ids=path_of)
async def test_long_message_that_needs_no_key_ends_at_the_door(method: MethodDescriptor, door: Door) -> None:
    for num_bytes in (8193, 1 << 20):
        assert refused(await door.call(path_of(method), bytes(num_bytes))) == (
            StatusCode.INVALID_ARGUMENT,
            "payload_too_large",
        )
    assert door.came == []


@pytest.mark.parametrize("method", [m for m in METHODS if not needs_key(m) and is_unary(m)], ids=path_of)
async def test_message_that_needs_no_key_and_does_not_come_holds_no_gateway(
    method: MethodDescriptor, door: Door
) -> None:
    call = door.channel.stream_stream(path_of(method))(timeout=20)
    with pytest.raises(grpc.aio.AioRpcError) as failure:  # HAProxy gives up after the time for a body
        async for _ in call:
            pass
    assert refused(failure.value) == (StatusCode.DEADLINE_EXCEEDED, "request_timeout")
    assert door.came == []


@pytest.mark.parametrize("method", ["ListApplications", "Other"])
async def test_rays_own_service_is_not_served(method: str, door: Door) -> None:
    answer = await door.call(f"/ray.serve.RayServeAPIService/{method}", metadata=[("x-api-key", KEY)])
    assert refused(answer) == (StatusCode.UNIMPLEMENTED, "not_found")
    assert door.came == []


@pytest.mark.parametrize(
    "path", ["/inference.GRPCInferenceService/Nope", "/grpc.health.v1.Health/List", "/a.B/C", "/a"]
)
async def test_method_that_is_not_served_is_unimplemented_with_and_without_a_key(path: str, door: Door) -> None:
    for metadata in ([("x-api-key", KEY)], []):
        assert refused(await door.call(path, metadata=metadata)) == (StatusCode.UNIMPLEMENTED, "not_found")
    assert door.came == []


METADATA = "/inference.GRPCInferenceService/ServerMetadata"


@pytest.mark.parametrize("name", ["application", "multiplexed_model_id", "session_id"])
async def test_order_to_ray_is_no_order_here(name: str, door: Door) -> None:
    answer = await door.call(METADATA, metadata=[("x-api-key", KEY), (name, "other")])
    assert not isinstance(answer, grpc.aio.AioRpcError), answer
    assert name not in door.metadata


@pytest.mark.parametrize("sent", [["mine"], ["a b"], ["a,b"], ["a" * 129], ["a", "b"], []])
async def test_one_request_id_reaches_the_gateway_by_both_names(sent: list[str], door: Door) -> None:
    ids = [("x-request-id", one) for one in sent]
    await door.call(METADATA, metadata=[("x-api-key", KEY), ("request_id", "rays own"), *ids])
    (seen,) = {door.metadata["x-request-id"], door.metadata["request_id"]}
    assert (sent == [seen]) is (sent == ["mine"])
    assert re.fullmatch("[A-Za-z0-9._-]{1,128}", seen)


async def test_what_is_no_grpc_is_told_so(door: Door) -> None:
    command = ["curl", "-sS", "-i", "--http2-prior-knowledge", f"http://127.0.0.1:{door.port}/healthz"]
    curl = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    reply = (await curl.communicate())[0].decode()
    assert reply.startswith("HTTP/2 415")
    assert "x-request-id: " in reply
    assert '"code":"unsupported_media_type"' in reply


async def test_rays_health_is_answered_by_haproxy(door: Door) -> None:
    answer = await door.call("/ray.serve.RayServeAPIService/Healthz")
    assert not isinstance(answer, grpc.aio.AioRpcError) or answer.code() == StatusCode.OK
    assert door.came == []


async def test_reflection_lists_every_service(door: Door) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(door.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (response,) = [one async for one in stub.ServerReflectionInfo(iter([request]), timeout=20)]
    listed = {service.name for service in response.list_services_response.service}
    assert listed == {service.full_name for service in SERVICES}


WORK = {
    "/inference.GRPCInferenceService/ModelInfer",
    "/vireo.v1.Vireo/Chat",
    "/vireo.v1.Vireo/Classify",
    "/vireo.v1.Vireo/EditImage",
    "/vireo.v1.Vireo/GenerateImage",
    "/vireo.v1.Vireo/GenerateImageStream",
    "/vireo.v1.Vireo/GenerateVideo",
}


def test_work_is_what_a_gateway_admits() -> None:
    assert set(WORK_RPCS) == WORK


@pytest.fixture
def go() -> asyncio.Event:
    """Set: the answers of ``held_door`` come."""
    return asyncio.Event()


@pytest.fixture
async def held_door(go: asyncio.Event) -> AsyncIterator[Door]:
    async for door in opened(has_keys=True, service=FakeService(chat_gates={0: go})):
        yield door


async def test_caller_has_as_many_calls_at_a_time_as_there_are_places_and_nobody_else_is_refused(
    held_door: Door, go: asyncio.Event
) -> None:
    turn = vireo_pb2.ChatMessage(role=vireo_pb2.CHAT_ROLE_USER, parts=[vireo_pb2.ChatPart(text="hello")])
    request = vireo_pb2.ChatRequest(model=CHAT_MODEL, messages=[turn]).SerializeToString()
    mine, other = [("x-api-key", KEY)], [("x-api-key", "key-of-bob")]
    chat, classify = "/vireo.v1.Vireo/Chat", "/vireo.v1.Vireo/Classify"
    waiting = [asyncio.create_task(held_door.call(chat, request, metadata=mine)) for _ in range(PLACES)]
    await until(lambda: len(held_door.came) == PLACES)
    for path in (chat, classify):
        answer = await held_door.call(path, request, metadata=mine)
        assert refused(answer) == (StatusCode.RESOURCE_EXHAUSTED, "queue_full")
    told = await held_door.call(METADATA, metadata=mine)
    assert not isinstance(told, grpc.aio.AioRpcError), "only work is counted"
    others = asyncio.create_task(held_door.call(chat, request, metadata=other))
    await until(lambda: len(held_door.came) == PLACES + 2)
    go.set()
    for answer in await asyncio.gather(*waiting, others):
        assert not isinstance(answer, grpc.aio.AioRpcError)
    assert not isinstance(await held_door.call(chat, request, metadata=mine), grpc.aio.AioRpcError)
