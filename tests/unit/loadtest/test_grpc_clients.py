"""The gRPC clients against a real gRPC server on this machine with scripted answers."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor
from vireo_pb.oip import open_inference_pb2, open_inference_pb2_grpc
from vireo_pb.vireo.v1 import vireo_pb2, vireo_pb2_grpc

from loadtest.clients.base import Budget, TargetError
from loadtest.clients.grpc_classify import GrpcClassifyClient, GrpcStreamClient
from loadtest.clients.grpc_oip import GrpcOipClient
from loadtest.clients.oip import pack_bytes, unpack_bytes
from loadtest.clients.outcomes import WrongAnswer
from loadtest.records import Outcome
from tests.support.waiting import turns
from tests.unit.loadtest.builders import make_payload

Answer = Callable[[Any, Any], Awaitable[Any]]


def ok(request: Any) -> vireo_pb2.ClassifyResponse:
    results = [
        vireo_pb2.ClassifyResult(index=index, label=image.decode(), score=0.5, exit=2)
        for index, image in enumerate(request.images)
    ]
    report = vireo_pb2.Report(operating_point="p", energy_j=0.25, cache="miss", degraded=["exit"])
    return vireo_pb2.ClassifyResponse(model=request.model, results=results, vireo=report, id=request.id)


class Servicer(vireo_pb2_grpc.VireoServicer):
    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[Any] = []
        self.metadata: list[dict[str, Any]] = []

    async def Classify(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        return await self.answer(request, context)

    async def ClassifyStream(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        """Answers in pairs, the later one first, so that only the id tells which is which."""
        held: list[Any] = []
        async for request in requests:
            held.append(request)
            if request.model == "end":
                return
            if len(held) == 2:
                for item in reversed(held):
                    yield await self.answer(item, context)
                held.clear()


class OipServicer(open_inference_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[Any] = []

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        return await self.answer(request, context)


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[tuple[str, Servicer, OipServicer]]:
    server = grpc.aio.server()
    own, oip = Servicer(answer), OipServicer(answer)
    vireo_pb2_grpc.add_VireoServicer_to_server(own, server)
    open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(oip, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}", own, oip
    finally:
        await server.stop(None)


async def answer_ok(request: Any, context: Any) -> Any:
    return ok(request)


async def test_a_unary_request_carries_everything_and_its_answer_is_read() -> None:
    async with serving(answer_ok) as (address, servicer, _):
        client = GrpcClassifyClient(address, api_keys={"a": "KEY"})
        await client.start()
        budget = Budget(latency_ms=5.0, energy_j=0.5, priority="low", quality_floor=0.9)
        payload = make_payload(images=(b"7", b"8"), model="m", top_k=2, tenant="a", budget=budget)
        reply = await client.send(client.prepare(payload))
        await client.close()
    (request,) = servicer.requests
    assert (request.model, list(request.images), request.top_k) == ("m", [b"7", b"8"], 2)
    assert (request.vireo.latency_ms, request.vireo.priority) == (5.0, vireo_pb2.PRIORITY_LOW)
    assert servicer.metadata[0]["authorization"] == "Bearer KEY"
    assert (reply.outcome, reply.status, reply.labels, reply.exits) == (Outcome.OK, "OK", ("7", "8"), (2, 2))
    assert reply.server is not None
    assert (reply.server.energy_j, reply.server.energy_source, reply.server.degraded) == (0.25, None, ("exit",))


async def test_a_status_with_its_trailers_becomes_an_outcome_with_code_and_retry_time() -> None:
    async def refuse(request: Any, context: Any) -> Any:
        error = {"code": "draining", "message": "m", "type": "rate_limit_error", "param": None}
        trailers = (("vireo-error-bin", json.dumps(error).encode()), ("retry-after-ms", "1500"))
        await context.abort(grpc.StatusCode.UNAVAILABLE, "going away", trailers)

    async with serving(refuse) as (address, _, _):
        client = GrpcClassifyClient(address)
        await client.start()
        reply = await client.send(client.prepare(make_payload()))
        await client.close()
    assert (reply.outcome, reply.status, reply.error_code) == (Outcome.REJECTED, "UNAVAILABLE", "draining")
    assert (reply.retry_after_s, reply.error_message) == (1.5, "going away")


async def test_items_that_failed_and_too_few_items_are_told_apart() -> None:
    async def answer(request: Any, context: Any) -> Any:
        response = ok(request)
        if request.model == "few":
            del response.results[1:]
        else:
            error = vireo_pb2.Error(code="invalid_image", type="invalid_request_error", message="m")
            response.results[0].CopyFrom(vireo_pb2.ClassifyResult(index=0, error=error))
        return response

    async with serving(answer) as (address, _, _):
        client = GrpcClassifyClient(address)
        await client.start()
        images = (b"1", b"2")
        partial = await client.send(client.prepare(make_payload(images=images)))
        few = await client.send(client.prepare(make_payload(images=images, model="few")))
        await client.close()
    assert (partial.outcome, partial.labels, partial.error_code) == (Outcome.PARTIAL, (None, "2"), "invalid_image")
    assert few.outcome is Outcome.PROTOCOL_ERROR


async def test_answers_of_a_stream_reach_who_asked_in_whatever_order_they_come() -> None:
    async with serving(answer_ok) as (address, _, _):
        client = GrpcStreamClient(address)
        await client.start()
        payloads = [make_payload(images=(b"%d" % index,)) for index in range(10)]
        replies = await asyncio.gather(*(client.send(client.prepare(payload)) for payload in payloads))
        await client.close()
    assert [reply.labels for reply in replies] == [(str(index),) for index in range(10)]


async def test_an_error_inside_a_stream_ends_one_request_only() -> None:
    async def answer(request: Any, context: Any) -> Any:
        if request.model == "bad":
            error = vireo_pb2.Error(code="queue_full", type="rate_limit_error")
            return vireo_pb2.ClassifyResponse(id=request.id, error=error)
        return ok(request)

    async with serving(answer) as (address, _, _):
        client = GrpcStreamClient(address)
        await client.start()
        sends = [client.send(client.prepare(make_payload(model=model))) for model in ("good", "bad")]
        good, bad = await asyncio.gather(*sends)
        await client.close()
    assert (good.outcome, bad.outcome, bad.error_code) == (Outcome.OK, Outcome.REJECTED, "queue_full")


async def test_a_stream_that_the_server_ends_fails_what_waits_on_it_and_the_next_request_opens_another() -> None:
    async with serving(answer_ok) as (address, _, _):
        client = GrpcStreamClient(address)
        await client.start()
        waiting = asyncio.create_task(client.send(client.prepare(make_payload())))
        await turns()
        ended = await client.send(client.prepare(make_payload(model="end")))
        assert (ended.outcome, (await waiting).outcome) == (Outcome.CONNECTION_ERROR, Outcome.CONNECTION_ERROR)
        replies = await asyncio.gather(*(client.send(client.prepare(make_payload())) for _ in range(2)))
        assert [reply.outcome for reply in replies] == [Outcome.OK, Outcome.OK]
        await client.close()


@pytest.mark.parametrize("num_steps", range(1, 8))
async def test_a_request_cancelled_at_any_step_does_not_end_the_stream_of_the_others(num_steps: int) -> None:
    async with serving(answer_ok) as (address, _, _):
        client = GrpcStreamClient(address)
        await client.start()
        first, partner = (client.prepare(make_payload(images=(image,))) for image in (b"1", b"2"))
        await asyncio.gather(client.send(first), client.send(partner))  # opens the stream
        (stream,) = client._streams.values()
        given_up = asyncio.create_task(client.send(client.prepare(make_payload(images=(b"x" * 100_000,)))))
        for _ in range(num_steps):
            await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        async with asyncio.timeout(20):
            others = await asyncio.gather(client.send(first), client.send(partner), client.send(first))
        assert [reply.labels for reply in others] == [("1",), ("2",), ("1",)]
        assert not stream.is_ended
        await client.close()


@pytest.mark.parametrize("is_raw", [True, False])
async def test_an_inference_answer_is_read_raw_and_typed(is_raw: bool) -> None:
    async def answer(request: Any, context: Any) -> Any:
        response = open_inference_pb2.ModelInferResponse(model_name=request.model_name)
        response.parameters["vireo_energy_j"].double_param = 0.5
        response.parameters["vireo_cache"].string_param = "hit"
        for name, datatype in (("LABEL", "BYTES"), ("EXIT", "INT32"), ("ERROR", "BYTES")):
            output = response.outputs.add(name=name, datatype=datatype, shape=[1])
            if not is_raw and datatype == "BYTES":
                output.contents.bytes_contents.append(b"7" if name == "LABEL" else b"")
            elif not is_raw:
                output.contents.int_contents.append(4)
        if is_raw:
            # Made by another implementation of the protocol.
            label, error = (serialize_byte_tensor(np.array([text], np.object_)).item() for text in (b"7", b""))
            response.raw_output_contents.extend([label, np.array([4], "<i4").tobytes(), error])
        return response

    async with serving(answer) as (address, _, servicer):
        client = GrpcOipClient(address)
        await client.start()
        payload = make_payload(images=(b"image",), budget=Budget(latency_ms=9.0, priority="high"))
        reply = await client.send(client.prepare(payload))
        await client.close()
    (request,) = servicer.requests
    assert deserialize_bytes_tensor(request.raw_input_contents[0]).tolist() == [b"image"]
    assert (request.inputs[0].name, list(request.inputs[0].shape)) == ("IMAGE", [1])
    assert request.parameters["vireo_latency_ms"].double_param == 9.0
    assert request.parameters["vireo_priority"].string_param == "high"
    assert request.parameters["top_k"].int64_param == 1
    assert (reply.outcome, reply.labels, reply.exits) == (Outcome.OK, ("7",), (4,))
    assert reply.server is not None
    assert (reply.server.energy_j, reply.server.cache) == (0.5, "hit")


async def test_an_inference_answer_with_broken_tensors_is_a_protocol_error() -> None:
    async def answer(request: Any, context: Any) -> Any:
        response = open_inference_pb2.ModelInferResponse()
        response.outputs.add(name="EXIT", datatype="INT32", shape=[1])
        response.raw_output_contents.append(b"abc")
        return response

    async with serving(answer) as (address, _, _):
        client = GrpcOipClient(address)
        await client.start()
        reply = await client.send(client.prepare(make_payload()))
        await client.close()
    assert reply.outcome is Outcome.PROTOCOL_ERROR


def test_bytes_tensors_agree_with_tritonclient_and_broken_ones_are_refused() -> None:
    elements = [b"", b"abc", bytes(range(256))]
    packed = pack_bytes(elements)
    assert packed == serialize_byte_tensor(np.array(elements, np.object_)).item()
    assert unpack_bytes(packed) == elements
    for broken in (packed[:-1], packed + b"\x05\x00\x00\x00a"):
        with pytest.raises(WrongAnswer):
            unpack_bytes(broken)


async def test_nobody_listening_is_a_target_error(unused_tcp_port: int) -> None:
    client = GrpcClassifyClient(f"127.0.0.1:{unused_tcp_port}")
    with pytest.raises(TargetError, match="no gRPC server"):
        await client._channel.open(timeout_s=0.3)
    with pytest.raises(TargetError, match="start"):
        client._channel.unary("/x", bytes)
