"""``vireo.v1.Vireo/Chat`` behind a real gRPC server, and what only gRPC has."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from vireo_pb.vireo.v1 import vireo_pb2, vireo_pb2_grpc

from serving.errors import EngineFailed
from serving.front.grpc.registration import add_vireo_to_server
from tests.support.chat_clients import Chat, message_of
from tests.support.clients import FakeContext, FrontDoor, context_outcome
from tests.support.fake_service import WORDS, FakeService
from tests.support.waiting import until

Served = tuple[FrontDoor, vireo_pb2_grpc.VireoStub]
TEXT = "".join(WORDS)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    door = FrontDoor()
    server = grpc.aio.server()
    add_vireo_to_server(door.methods, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield door, vireo_pb2_grpc.VireoStub(channel)
    await server.stop(None)


async def settled(door: FrontDoor) -> str:
    """Wait until nothing is left of the only call; return its outcome."""
    await until(lambda: door.calls.finished and not door.service.chats_open)
    (call,) = door.calls.finished
    outcome: str = call.outcome
    return outcome


async def test_stream_is_deltas_and_then_the_end(served: Served) -> None:
    door, stub = served
    *deltas, last = [response async for response in stub.Chat(message_of(Chat(n=2)))]
    assert all(response.WhichOneof("event") == "delta" for response in deltas)
    for index in range(2):
        mine = [response.delta for response in deltas if response.delta.index == index]
        assert "".join(delta.text for delta in mine) == TEXT
        assert sum(delta.num_tokens for delta in mine) == len(WORDS)
    assert list(last.end.finish_reasons) == [vireo_pb2.FINISH_REASON_STOP] * 2
    assert last.end.usage.completion_tokens == 2 * len(WORDS)
    assert last.end.vireo.energy_j == 0.25
    assert await settled(door) == "ok"


async def test_text_comes_while_it_is_made(served: Served) -> None:
    door, stub = served
    gate = door.service.chat_gates[1] = asyncio.Event()
    call = stub.Chat(message_of(Chat()))
    assert (await call.read()).delta.text == WORDS[0]
    gate.set()
    assert (await call.read()).delta.text == "".join(WORDS[1:])
    assert (await call.read()).HasField("end")
    assert await call.read() == grpc.aio.EOF
    assert await call.code() == StatusCode.OK


async def test_error_in_the_middle_ends_the_call_with_its_status(served: Served) -> None:
    door, stub = served
    door.service.chat_errors[2] = EngineFailed("the engine has died")
    texts: list[str] = []

    async def read() -> None:
        async for response in stub.Chat(message_of(Chat())):
            texts.append(response.delta.text)  # noqa: PERF401

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read()
    assert "".join(texts) == "".join(WORDS[:2])
    assert caught.value.code() == StatusCode.INTERNAL
    assert json.loads(dict(caught.value.trailing_metadata())["vireo-error-bin"])["code"] == "engine_failed"
    assert await settled(door) == "engine_failed"


@pytest.mark.parametrize("position", [0, 2])
async def test_client_that_cancels_ends_the_work(served: Served, position: int) -> None:
    door, stub = served
    door.service.chat_gates[position] = asyncio.Event()
    call = stub.Chat(message_of(Chat()))
    reading = asyncio.ensure_future(call.read())
    await door.service.entered.wait()
    if position:
        await reading
    call.cancel()
    assert await settled(door) == "cancelled"
    assert door.service.chats_cut == 1
    if not position:
        with pytest.raises(asyncio.CancelledError):
            await reading


async def test_deadline_of_the_call_ends_the_work_and_is_known_to_the_service(served: Served) -> None:
    door, stub = served
    door.service.chat_gates[1] = asyncio.Event()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in stub.Chat(message_of(Chat()), timeout=0.3):
            pass
    assert caught.value.code() == StatusCode.DEADLINE_EXCEEDED
    assert await settled(door) == "cancelled"
    assert door.service.chats_cut == 1
    assert door.service.chats[0].deadline_s is not None


async def test_reader_that_closes_the_stream_ends_the_work() -> None:
    door = FrontDoor(FakeService(chat_gates={1: asyncio.Event()}))
    stream = door.grpc.Chat(message_of(Chat()), FakeContext())
    assert (await anext(stream)).delta.text == WORDS[0]
    await stream.aclose()
    assert await settled(door) == "cancelled"
    assert door.service.chats_cut == 1


UNKNOWN_FIELD = b"\xfa\x7f\x01x"
"""Field 2047 of any message."""


def tampered(**members: Any) -> vireo_pb2.ChatRequest:
    message = message_of(Chat())
    for name, value in members.items():
        setattr(message, name, value)
    return message


def newer(path: str) -> vireo_pb2.ChatRequest:
    """A request with a field of a newer protocol in the message at ``path``."""
    message: Any = message_of(Chat(latency_ms=100.0))
    message.sampling.n = 1
    target = {
        "request": message,
        "turn": message.messages[0],
        "part": message.messages[0].parts[0],
        "sampling": message.sampling,
        "budget": message.vireo,
    }[path]
    target.MergeFromString(UNKNOWN_FIELD)
    return vireo_pb2.ChatRequest.FromString(message.SerializeToString())


async def refusal(message: vireo_pb2.ChatRequest) -> tuple[str | None, str | None]:
    context, door = FakeContext(), FrontDoor()
    assert not [response async for response in door.grpc.Chat(message, context)]
    outcome = context_outcome(context)
    assert outcome is not None
    assert not door.service.chats
    return outcome.error, outcome.param


@pytest.mark.parametrize("path", ["request", "turn", "part", "sampling", "budget"])
async def test_field_of_a_newer_protocol_is_refused_wherever_it_is(path: str) -> None:
    assert (await refusal(newer(path)))[0] == "unknown_field"


async def test_part_of_no_kind_and_role_of_no_name_are_refused() -> None:
    empty = vireo_pb2.ChatMessage(role=vireo_pb2.CHAT_ROLE_USER, parts=[vireo_pb2.ChatPart()])
    assert await refusal(vireo_pb2.ChatRequest(model="m", messages=[empty])) == (
        "invalid_request",
        "messages[0].parts[0]",
    )
    strange = vireo_pb2.ChatMessage(role=17, parts=[vireo_pb2.ChatPart(text="x")])  # type: ignore[arg-type]
    assert await refusal(vireo_pb2.ChatRequest(model="m", messages=[strange])) == (
        "invalid_request",
        "messages[0].role",
    )


@pytest.mark.parametrize("text", ["", "{", "[]", "1", '{"a": 1, "a": 2}', " " * 70_000 + "{}"])
async def test_schema_that_is_no_object_of_bounded_size_is_refused(text: str) -> None:
    message = tampered()
    message.sampling.json_schema = text
    code, param = await refusal(message)
    assert code == "invalid_request"
    assert param in ("sampling.json_schema", "a")
