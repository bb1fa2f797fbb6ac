"""Every RPC of every service: what it reads, of whom, how much, and what it says about it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from google.protobuf.descriptor import MethodDescriptor
from grpc import StatusCode
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from vireo_pb.oip import open_inference_pb2 as oip
from vireo_pb.vireo.v1 import vireo_pb2

from serving.front.auth import Authenticator
from serving.front.grpc import call as grpc_call
from serving.front.grpc.registration import SERVICES, methods_of, needs_key, path_of
from serving.limits import MAX_SMALL_BYTES, IngressLimits
from tests.support.clients import FakeContext, FrontDoor
from tests.support.fake_service import MODEL

METHODS = [method for service in SERVICES for method in methods_of(service)]
KEYED = [method for method in METHODS if needs_key(method)]
KEYLESS = [method for method in METHODS if not needs_key(method)]
KEYS = {"ada": hashlib.sha256(b"key-of-ada").hexdigest()}
ADA = [("x-api-key", "key-of-ada")]
LIMITS = IngressLimits(body_timeout_s=0.05)
IN_STREAM = {"ClassifyStream", "ModelStreamInfer"}
"""Methods that answer a bad request in the stream, which goes on."""
CAPS = {
    "Classify": LIMITS.max_encoded_bytes,
    "ClassifyStream": LIMITS.max_encoded_bytes,
    "Chat": LIMITS.max_encoded_bytes,
    "GenerateVideo": LIMITS.max_encoded_bytes,
    "GenerateImage": LIMITS.max_prompt_bytes,
    "GenerateImageStream": LIMITS.max_prompt_bytes,
    "EditImage": LIMITS.max_encoded_bytes,
    "ModelInfer": LIMITS.max_body_bytes,
    "ModelStreamInfer": LIMITS.max_body_bytes,
}


@dataclass
class Sent:
    """What a client sends, and how often it was asked for."""

    data: bytes | None
    num_asked: int = 0

    def __aiter__(self) -> Sent:
        return self

    async def __anext__(self) -> bytes:
        self.num_asked += 1
        if self.data is None or self.num_asked > 1:
            raise StopAsyncIteration
        return self.data


async def answers(door: FrontDoor, method: MethodDescriptor, sent: Any, context: FakeContext) -> list[Any]:
    called = getattr(door.methods, method.name)(sent, context)
    return [answer async for answer in called] if method.server_streaming else [await called]


async def refusal(method: MethodDescriptor, sent: Any, metadata: Any = ADA) -> tuple[str, str]:
    """Code and message, wherever the method tells them."""
    door, context = FrontDoor(authenticator=Authenticator(KEYS, False), limits=LIMITS), FakeContext(metadata)
    replies = await answers(door, method, sent, context)
    assert not door.service.requests
    if context.code is not StatusCode.OK:
        error = json.loads(context.trailers["vireo-error-bin"])
        assert error["message"] == context.details
        return error["code"], error["message"]
    (reply,) = replies
    if isinstance(reply, vireo_pb2.ClassifyResponse):
        return reply.error.code, reply.error.message
    code, _, message = reply.error_message.partition("] ")
    return code[1:], message


def test_every_method_is_in_the_table() -> None:
    assert len(METHODS) == 24
    assert {method.name for method in KEYLESS} == {
        "ServerLive", "ServerReady", "Check", "Watch", "ServerReflectionInfo",
    }  # fmt: skip


@pytest.mark.parametrize("metadata", [[], [("x-api-key", "wrong")], [("authorization", "Basic x")]], ids=str)
@pytest.mark.parametrize("method", KEYED, ids=path_of)
async def test_nothing_is_read_of_a_caller_without_the_right_key(method: MethodDescriptor, metadata: Any) -> None:
    sent = Sent(b"\x12\x00" * 100)
    code, _ = await refusal(method, sent, metadata)
    assert (code, sent.num_asked) == ("invalid_api_key", 0)


@pytest.mark.parametrize("method", METHODS, ids=path_of)
async def test_message_over_the_cap_of_its_method_is_refused_before_it_is_parsed(method: MethodDescriptor) -> None:
    cap = CAPS.get(method.name, MAX_SMALL_BYTES)
    code, message = await refusal(method, Sent(bytes(cap + 1)))
    assert code == "payload_too_large"
    assert f"the limit of this method is {cap}" in message
    code, _ = await refusal(method, Sent(bytes(cap)))  # a tag of zero: no message, but not too long either
    assert code != "payload_too_large"


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x05abc", b"\x00", b"\x0f", b"\xff" * 1000], ids=repr)
@pytest.mark.parametrize("method", METHODS, ids=path_of)
async def test_bytes_that_are_no_message_are_told_so(method: MethodDescriptor, data: bytes) -> None:
    code, message = await refusal(method, Sent(data))
    assert code in ("invalid_request", "unknown_field")
    assert message


@pytest.mark.parametrize("method", [m for m in METHODS if m.input_type.fields], ids=path_of)
async def test_text_that_is_not_utf8_is_told_so(method: MethodDescriptor) -> None:
    number = next(field.number for field in method.input_type.fields if field.type == field.TYPE_STRING)
    code, message = await refusal(method, Sent(bytes([number << 3 | 2, 1, 0xFF])))
    assert (code, "UTF-8" in message) == ("invalid_request", True)


@pytest.mark.parametrize(
    "method", [m for m in METHODS if m.name not in {*IN_STREAM, "ServerReflectionInfo"}], ids=path_of
)
async def test_call_without_a_message_is_told_so(method: MethodDescriptor) -> None:
    code, message = await refusal(method, Sent(None))
    assert (code, "0 messages" in message) == ("invalid_request", True)


@pytest.mark.parametrize("method", [method for method in METHODS if not method.client_streaming], ids=path_of)
async def test_call_with_two_messages_is_told_so(method: MethodDescriptor) -> None:
    async def two() -> AsyncIterator[bytes]:
        yield b""
        yield b""

    code, message = await refusal(method, two())
    assert (code, "2 messages" in message) == ("invalid_request", True)


@pytest.mark.parametrize("method", METHODS, ids=path_of)
async def test_stream_of_a_call_that_is_over_holds_no_message(method: MethodDescriptor) -> None:
    """gRPC's is a generator, which holds what it gave out last until somebody asks it for more."""
    frames: list[Any] = []

    async def sent() -> AsyncIterator[bytes]:
        message = b"\xff"
        try:
            yield message
            await asyncio.Event().wait()
        finally:
            frames.append(message)

    if method.name in IN_STREAM:
        called = getattr(FrontDoor().methods, method.name)(sent(), FakeContext())
        await anext(called)
        await called.aclose()
    else:
        await refusal(method, sent())
    assert frames, "it was not resumed"


@pytest.mark.parametrize("method", [m for m in METHODS if m.name not in IN_STREAM], ids=path_of)
async def test_message_that_does_not_come_is_not_waited_for_without_end(method: MethodDescriptor) -> None:
    assert (await refusal(method, never()))[0] == "request_timeout"


async def never() -> AsyncIterator[bytes]:
    await asyncio.Event().wait()
    yield b""


@pytest.mark.parametrize("method", KEYLESS, ids=path_of)
async def test_calls_without_a_key_take_a_bounded_number_of_slots(
    method: MethodDescriptor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_call, "MAX_KEYLESS_CALLS", 1)
    door, context = FrontDoor(limits=IngressLimits(body_timeout_s=60)), FakeContext()
    waiting = asyncio.create_task(answers(door, method, never(), FakeContext()))
    await asyncio.sleep(0)
    await answers(door, method, Sent(b""), context)
    assert context.code is StatusCode.RESOURCE_EXHAUSTED
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await answered(door, method)


async def answered(door: FrontDoor, method: MethodDescriptor) -> bool:
    """Whether a valid call gets its first answer."""
    context, called = FakeContext(), getattr(door.methods, method.name)(Sent(b""), FakeContext())
    if not method.server_streaming:
        return (await called) is not None and context.code is StatusCode.OK
    async for _ in called:
        await called.aclose()
        return True
    return False


async def test_reflection_lists_every_service_and_describes_ours() -> None:
    listing = reflection_pb2.ServerReflectionRequest(list_services="")
    symbol = reflection_pb2.ServerReflectionRequest(file_containing_symbol="vireo.v1.Vireo")

    async def asked() -> AsyncIterator[bytes]:
        for request in (listing, symbol):
            yield request.SerializeToString()

    first, second = [one async for one in FrontDoor().methods.ServerReflectionInfo(asked(), FakeContext())]
    assert [service.name for service in first.list_services_response.service] == sorted(
        service.full_name for service in SERVICES
    )
    assert second.file_descriptor_response.file_descriptor_proto


async def test_id_of_a_refused_request_of_a_stream_is_echoed() -> None:
    newer = b"\xfa\x01\x02hi"
    messages = [
        vireo_pb2.ClassifyRequest(model=MODEL, id="a").SerializeToString() + newer,
        oip.ModelInferRequest(model_name=MODEL, id="b").SerializeToString() + newer,
    ]
    door = FrontDoor()
    (classify,) = [one async for one in door.methods.ClassifyStream(Sent(messages[0]), FakeContext())]
    (infer,) = [one async for one in door.methods.ModelStreamInfer(Sent(messages[1]), FakeContext())]
    assert (classify.id, classify.error.code) == ("a", "unknown_field")
    assert (infer.infer_response.id, infer.error_message[:15]) == ("b", "[unknown_field]")


async def test_watch_tells_the_state_of_a_service() -> None:
    request = health_pb2.HealthCheckRequest(service="vireo.v1.Vireo")
    async for reply in FrontDoor().methods.Watch(Sent(request.SerializeToString()), FakeContext()):
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
        break
