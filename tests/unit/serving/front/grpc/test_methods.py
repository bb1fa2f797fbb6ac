"""The RPCs, called as Ray Serve calls them, and over a real channel."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from vireo_pb.oip import open_inference_pb2 as oip
from vireo_pb.vireo.v1 import vireo_pb2, vireo_pb2_grpc

from serving.domain import Priority
from serving.errors import QueueFull
from serving.front.auth import Authenticator
from serving.front.grpc.registration import (
    SERVICES,
    add_health_to_server,
    add_inference_to_server,
    add_vireo_to_server,
    methods_of,
)
from serving.gateway.grpc import GrpcMethods
from serving.limits import IngressLimits
from tests.support import fake_service
from tests.support.accounts import FakeAccounts
from tests.support.clients import (
    GOOD_LABEL,
    GOOD_PNG,
    Ask,
    FakeContext,
    FrontDoor,
    Outcome,
    asgi,
    context_outcome,
    length_prefixed,
    oip_message,
    stream_of,
    vireo_message,
)
from tests.support.fake_service import CHAT_MODEL, MODEL, FakeService
from tests.support.fake_videos import VIDEO_MODEL, make_video_card
from tests.support.waiting import until

GOOD = Ask([GOOD_PNG])
KEYS = {"ada": hashlib.sha256(b"key-of-ada").hexdigest()}


def test_every_rpc_has_a_method_of_its_name_and_kind() -> None:
    for method in [method for service in SERVICES for method in methods_of(service)]:
        function = getattr(GrpcMethods, method.name)
        assert inspect.isasyncgenfunction(function) is method.server_streaming, method.name
        assert inspect.iscoroutinefunction(function) is not method.server_streaming, method.name
        assert "grpc_context" in inspect.signature(function).parameters, "Ray Serve passes it by this name"


async def test_classify_answers_with_results_report_and_id() -> None:
    reply = await FrontDoor().grpc.Classify(vireo_message(Ask([GOOD_PNG, b"junk"], top_k=2), "abc"), FakeContext())
    assert (reply.model, reply.id) == (MODEL, "abc")
    first, second = reply.results
    assert (first.index, first.label, first.exit, len(first.top_k)) == (0, GOOD_LABEL, 4, 2)
    assert not first.HasField("error")
    assert (second.index, second.error.code, second.label) == (1, "unsupported_media_type", "")
    assert (reply.vireo.operating_point, reply.vireo.energy_j, reply.vireo.cache) == ("fast", 0.25, "miss")
    assert (list(reply.vireo.degraded), reply.vireo.guard.action) == (["exit_threshold"], "normal")
    assert not reply.HasField("error")


@pytest.mark.parametrize(
    ("priority", "expected"),
    [(0, Priority.NORMAL), (1, Priority.LOW), (2, Priority.NORMAL), (3, Priority.HIGH)],
)
async def test_priority_is_understood(priority: Any, expected: Priority) -> None:
    door = FrontDoor()
    message = vireo_message(GOOD)
    message.vireo.priority = priority
    await door.grpc.Classify(message, FakeContext())
    assert door.service.requests[0].budget.priority is expected


def bad_messages() -> dict[str, tuple[vireo_pb2.ClassifyRequest, str, str | None]]:
    unknown_priority = vireo_message(GOOD)
    unknown_priority.vireo.priority = 99  # type: ignore[assignment]
    newer = vireo_message(GOOD)
    newer.MergeFromString(b"\xfa\x01\x02hi")  # field 31
    newer_budget = vireo_message(GOOD)
    newer_budget.vireo.MergeFromString(b"\xfa\x01\x02hi")
    return {
        "empty": (vireo_pb2.ClassifyRequest(), "invalid_request", "images"),
        "no_images": (vireo_pb2.ClassifyRequest(model=MODEL), "invalid_request", "images"),
        "long_model": (vireo_message(Ask([GOOD_PNG], model="m" * 300)), "invalid_request", "model"),
        "long_id": (vireo_message(GOOD, "i" * 300), "invalid_request", "id"),
        "priority": (unknown_priority, "invalid_request", "vireo.priority"),
        "unknown_field": (newer, "unknown_field", "ClassifyRequest field 31"),
        "unknown_budget_field": (newer_budget, "unknown_field", "Budget field 31"),
    }


@pytest.mark.parametrize("name", bad_messages())
async def test_bad_message_is_refused_unary_and_in_a_stream(name: str) -> None:
    message, code, param = bad_messages()[name]
    door, context = FrontDoor(), FakeContext()
    reply = await door.grpc.Classify(message, context)
    outcome = context_outcome(context)
    assert outcome is not None
    assert (outcome.error, outcome.status, outcome.param) == (code, StatusCode.INVALID_ARGUMENT, param)
    assert reply == vireo_pb2.ClassifyResponse()
    replies = [
        item async for item in door.grpc.ClassifyStream(stream_of([message, vireo_message(GOOD)]), FakeContext())
    ]
    assert sorted(item.error.code for item in replies) == ["", code]


def infer_message(**changes: Any) -> oip.ModelInferRequest:
    tensor = oip.ModelInferRequest.InferInputTensor(name="IMAGE", datatype="BYTES", shape=[1])
    return oip.ModelInferRequest(**({"model_name": MODEL, "inputs": [tensor]} | changes))


def tensor(contents: dict[str, Any] | None = None, **changes: Any) -> oip.ModelInferRequest.InferInputTensor:
    fields = {"name": "IMAGE", "datatype": "BYTES", "shape": [1]} | changes
    return oip.ModelInferRequest.InferInputTensor(
        **fields, contents=None if contents is None else oip.InferTensorContents(**contents)
    )


RAW = [length_prefixed([GOOD_PNG])]
Wanted = oip.ModelInferRequest.InferRequestedOutputTensor
TEXT = oip.InferParameter(string_param="x")
BAD_INFERS: dict[str, tuple[oip.ModelInferRequest, str]] = {
    "no_inputs": (infer_message(inputs=[]), "invalid_request"),
    "many_inputs": (infer_message(inputs=[tensor()] * 10_000), "invalid_request"),
    "many_outputs": (infer_message(outputs=[Wanted(name="LABEL")] * 10_000, raw_input_contents=RAW), "invalid_request"),
    "many_parameters": (
        infer_message(parameters={str(i): TEXT for i in range(1000)}, raw_input_contents=RAW),
        "invalid_request",
    ),
    "many_dimensions": (infer_message(inputs=[tensor(shape=[1] * 10_000)], raw_input_contents=RAW), "invalid_request"),
    "many_typed_elements": (
        infer_message(inputs=[tensor({"bytes_contents": [b""] * 300_000})]),
        "invalid_request",
    ),
    "no_elements": (infer_message(), "invalid_request"),
    "raw_count": (infer_message(raw_input_contents=RAW * 2), "invalid_request"),
    "raw_and_typed": (
        infer_message(inputs=[tensor({"bytes_contents": [b"x"]})], raw_input_contents=RAW),
        "invalid_request",
    ),
    "wrong_contents": (infer_message(inputs=[tensor({"uint_contents": [1]})]), "invalid_request"),
    "two_contents": (
        infer_message(inputs=[tensor({"uint_contents": [1], "bytes_contents": [b"x"]})]),
        "invalid_request",
    ),
    "fp16_typed": (
        infer_message(inputs=[tensor({"fp32_contents": [1.0]}, name="PIXELS", datatype="FP16", shape=[1, 1, 1, 3])]),
        "invalid_request",
    ),
    "bf16_raw": (
        infer_message(
            inputs=[tensor(name="PIXELS", datatype="BF16", shape=[1, 1, 1, 3])], raw_input_contents=[b"123456"]
        ),
        "invalid_request",
    ),
    "wrong_dtype": (infer_message(inputs=[tensor(datatype="FP32")], raw_input_contents=RAW), "invalid_request"),
    "wrong_shape": (infer_message(inputs=[tensor(shape=[2])], raw_input_contents=RAW), "invalid_request"),
    "negative_shape": (infer_message(inputs=[tensor(shape=[-1])], raw_input_contents=RAW), "invalid_request"),
    "empty_shape": (infer_message(inputs=[tensor(shape=[])], raw_input_contents=RAW), "invalid_request"),
    "overflowing_shape": (
        infer_message(
            inputs=[tensor(name="PIXELS", datatype="UINT8", shape=[4, 2**31 - 1, 2**31 - 1, 3])],
            raw_input_contents=[b""],
        ),
        "invalid_request",
    ),
    "unknown_input": (infer_message(inputs=[tensor(name="X")], raw_input_contents=RAW), "unknown_field"),
    "input_parameter": (infer_message(inputs=[tensor(parameters={"shared_memory_region": TEXT})]), "unknown_field"),
    "output_parameter": (
        infer_message(
            outputs=[Wanted(name="LABEL", parameters={"shared_memory_region": TEXT})],
            raw_input_contents=RAW,
        ),
        "unknown_field",
    ),
    "classes_of_labels": (
        infer_message(
            outputs=[Wanted(name="LABEL", parameters={"classification": oip.InferParameter(int64_param=2)})],
            raw_input_contents=RAW,
        ),
        "invalid_request",
    ),
    "chat_model": (infer_message(model_name=CHAT_MODEL, raw_input_contents=RAW), "invalid_request"),
    "unknown_output": (
        infer_message(outputs=[Wanted(name="LOGITS")], raw_input_contents=RAW),
        "unknown_field",
    ),
    "unknown_parameter": (infer_message(parameters={"seed": TEXT}, raw_input_contents=RAW), "unknown_field"),
    "empty_parameter": (
        infer_message(parameters={"top_k": oip.InferParameter()}, raw_input_contents=RAW),
        "invalid_request",
    ),
    "text_parameter": (infer_message(parameters={"top_k": TEXT}, raw_input_contents=RAW), "invalid_request"),
    "unknown_version": (infer_message(model_version="7", raw_input_contents=RAW), "model_not_found"),
    "long_id": (infer_message(id="i" * 300, raw_input_contents=RAW), "invalid_request"),
}


@pytest.mark.parametrize("name", BAD_INFERS)
async def test_bad_infer_is_refused_unary_and_in_a_stream(name: str) -> None:
    message, code = BAD_INFERS[name]
    door, context = FrontDoor(), FakeContext()
    assert await door.grpc.ModelInfer(message, context) == oip.ModelInferResponse()
    outcome = context_outcome(context)
    assert outcome is not None
    assert outcome.error == code
    assert not door.service.requests
    messages = [message, oip_message(GOOD, "good")]
    replies = [item async for item in door.grpc.ModelStreamInfer(stream_of(messages), FakeContext())]
    assert sorted(item.error_message.partition("]")[0] for item in replies) == ["", f"[{code}"]


async def test_joules_that_no_meter_read_are_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    known = await FrontDoor().grpc.Classify(vireo_message(Ask([GOOD_PNG]), "abc"), FakeContext())
    unknown = replace(fake_service.make_report(), energy_j=None, energy_source="nvml")
    monkeypatch.setattr(fake_service, "make_report", lambda: unknown)
    reply = await FrontDoor().grpc.Classify(vireo_message(Ask([GOOD_PNG]), "abc"), FakeContext())
    assert (known.vireo.HasField("energy_j"), reply.vireo.HasField("energy_j")) == (True, False)
    assert reply.vireo.energy_source == "nvml"
    raw = await FrontDoor().grpc.ModelInfer(infer_message(raw_input_contents=RAW), FakeContext())
    assert "vireo_energy_j" not in raw.parameters


async def test_typed_request_gets_typed_outputs_and_raw_gets_raw() -> None:
    door = FrontDoor()
    typed = await door.grpc.ModelInfer(infer_message(inputs=[tensor({"bytes_contents": [GOOD_PNG]})]), FakeContext())
    raw = await door.grpc.ModelInfer(infer_message(raw_input_contents=RAW), FakeContext())
    assert not typed.raw_output_contents
    assert {item.name: item for item in typed.outputs}["LABEL"].contents.bytes_contents == [GOOD_LABEL.encode()]
    assert {item.name: item for item in typed.outputs}["EXIT"].contents.int_contents == [4]
    assert len(raw.raw_output_contents) == len(raw.outputs) == 6
    assert raw.parameters["vireo_energy_j"].double_param == 0.25
    assert raw.parameters["vireo_operating_point"].string_param == "fast"


async def test_pixels_are_served_raw_and_typed() -> None:
    array = np.full((1, 8, 8, 3), 250, np.uint8)
    shape = {"name": "PIXELS", "shape": array.shape}
    floats = (array / np.float32(255)).astype(np.float32)
    messages = [
        infer_message(inputs=[tensor(datatype="UINT8", **shape)], raw_input_contents=[array.tobytes()]),
        infer_message(inputs=[tensor({"uint_contents": array.flatten().tolist()}, datatype="UINT8", **shape)]),
        infer_message(inputs=[tensor(datatype="FP32", **shape)], raw_input_contents=[floats.tobytes()]),
        infer_message(inputs=[tensor({"fp32_contents": floats.flatten().tolist()}, datatype="FP32", **shape)]),
    ]
    door = FrontDoor()
    for message in messages:
        await door.grpc.ModelInfer(message, FakeContext())
    for request in door.service.requests:
        np.testing.assert_array_equal(request.images[0].pixels, array[0])
    assert len(door.service.requests) == 4


async def test_lookups_answer() -> None:
    methods = FrontDoor().grpc
    assert (await methods.ServerLive(oip.ServerLiveRequest(), FakeContext())).live
    assert (await methods.ServerReady(oip.ServerReadyRequest(), FakeContext())).ready
    assert (await methods.ModelReady(oip.ModelReadyRequest(name=MODEL), FakeContext())).ready
    assert (await methods.ServerMetadata(oip.ServerMetadataRequest(), FakeContext())).name == "vireo"
    metadata = await methods.ModelMetadata(oip.ModelMetadataRequest(name=MODEL, version="1"), FakeContext())
    assert [item.name for item in metadata.inputs] == ["IMAGE", "PIXELS"]
    assert list(metadata.outputs[3].shape) == [-1, -1]
    assert list(metadata.versions) == ["1"]


@pytest.mark.parametrize("method", ["ModelMetadata", "ModelConfig", "ModelStatistics"])
@pytest.mark.parametrize("name", [{"name": "none"}, {"name": MODEL, "version": "2"}], ids=str)
async def test_lookup_of_an_unknown_model_is_not_found(method: str, name: Any) -> None:
    context = FakeContext()
    await getattr(FrontDoor().grpc, method)(getattr(oip, f"{method}Request")(**name), context)
    assert context.code == StatusCode.NOT_FOUND


async def test_unknown_model_is_not_ready_and_no_error() -> None:
    for name in ({"name": "none"}, {"name": MODEL, "version": "2"}, {}):
        context = FakeContext()
        assert not (await FrontDoor().grpc.ModelReady(oip.ModelReadyRequest(**name), context)).ready
        assert context.code == StatusCode.OK


async def test_index_lists_models_of_every_task_by_their_state() -> None:
    door = FrontDoor(FakeService(video_cards=(make_video_card(),)))
    door.service.sick = {CHAT_MODEL}
    index = (await door.grpc.RepositoryIndex(oip.RepositoryIndexRequest(), FakeContext())).models
    states = {model.name: model.state for model in index}
    assert states == {MODEL: "READY", CHAT_MODEL: "UNAVAILABLE", VIDEO_MODEL: "READY"}
    assert {(model.version, bool(model.reason)) for model in index} == {("1", False), ("1", True)}
    ready = (await door.grpc.RepositoryIndex(oip.RepositoryIndexRequest(ready=True), FakeContext())).models
    assert [model.name for model in ready] == [MODEL, VIDEO_MODEL]
    context = FakeContext()
    await door.grpc.RepositoryIndex(oip.RepositoryIndexRequest(repository_name="mine"), context)
    outcome = context_outcome(context)
    assert outcome is not None
    assert (outcome.error, outcome.param) == ("unsupported_field", "repository_name")


async def test_configuration_names_inputs_outputs_and_priorities() -> None:
    config = (await FrontDoor().grpc.ModelConfig(oip.ModelConfigRequest(name=MODEL), FakeContext())).config
    assert [(one.name, one.data_type, list(one.dims), one.optional) for one in config.input] == [
        ("IMAGE", oip.TYPE_STRING, [1], True),
        ("PIXELS", oip.TYPE_UINT8, [-1, -1, 3], True),
    ]
    assert (config.dynamic_batching.priority_levels, config.dynamic_batching.default_priority_level) == (3, 2)
    assert (config.backend, config.max_batch_size) == ("vireo", IngressLimits().max_images)
    chat = (await FrontDoor().grpc.ModelConfig(oip.ModelConfigRequest(name=CHAT_MODEL), FakeContext())).config
    assert (list(chat.input), list(chat.output), chat.max_batch_size) == ([], [], 0)


async def test_messages_have_tritons_field_numbers() -> None:
    """Its client's own descriptors cannot be loaded beside ours: they have the same names."""
    numbers = {field.name: field.number for field in oip.ModelConfig.DESCRIPTOR.fields}
    assert numbers == {
        "name": 1, "platform": 2, "max_batch_size": 4, "input": 5, "output": 6, "dynamic_batching": 11,
        "parameters": 14, "backend": 17,
    }  # fmt: skip


async def test_stream_says_that_its_one_answer_is_the_last() -> None:
    message = oip_message(GOOD)
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    (reply,) = [one async for one in FrontDoor().grpc.ModelStreamInfer(stream_of([message]), FakeContext())]
    assert reply.infer_response.parameters["triton_final_response"].bool_param
    unary = await FrontDoor().grpc.ModelInfer(message, FakeContext())
    assert "triton_final_response" not in unary.parameters


KEYED: dict[str, Any] = {
    "Classify": vireo_message(GOOD),
    "ModelInfer": oip_message(GOOD),
    "ModelReady": oip.ModelReadyRequest(name=MODEL),
    "ServerMetadata": oip.ServerMetadataRequest(),
    "ModelMetadata": oip.ModelMetadataRequest(name=MODEL),
}
KEYED_STREAMS: dict[str, Any] = {"ClassifyStream": vireo_message(GOOD), "ModelStreamInfer": oip_message(GOOD)}


async def ask(door: FrontDoor, method: str, context: FakeContext) -> Outcome | None:
    if method in KEYED:
        await getattr(door.grpc, method)(KEYED[method], context)
    else:
        async for _ in getattr(door.grpc, method)(stream_of([KEYED_STREAMS[method]]), context):
            pass
    return context_outcome(context)


@pytest.mark.parametrize("method", [*KEYED, *KEYED_STREAMS])
async def test_rpc_that_needs_a_key_refuses_without_one(method: str) -> None:
    door = FrontDoor(authenticator=Authenticator(KEYS, False))
    outcome = await ask(door, method, FakeContext())
    assert outcome is not None
    assert outcome.status == StatusCode.UNAUTHENTICATED
    assert not door.service.requests
    for metadata in ([("authorization", "Bearer key-of-ada")], [("x-api-key", "key-of-ada")]):
        assert await ask(door, method, FakeContext(metadata)) is None
    assert all(request.tenant == "ada" for request in door.service.requests)


@pytest.mark.parametrize("method", [*KEYED, *KEYED_STREAMS])
async def test_without_keys_a_remote_caller_is_denied(method: str) -> None:
    outcome = await ask(FrontDoor(), method, FakeContext(peer="ipv4:203.0.113.7:1"))
    assert outcome is not None
    assert outcome.status == StatusCode.PERMISSION_DENIED


async def test_request_id_is_echoed_in_the_trailers() -> None:
    context = FakeContext([("x-request-id", "abc"), ("x-binary-bin", b"\xff")])
    door = FrontDoor()
    await door.grpc.Classify(vireo_message(GOOD), context)
    assert context.trailers == {"x-request-id": "abc"}
    assert door.service.requests[0].request_id == "abc"


async def test_retry_time_is_in_the_trailers_and_in_the_stream() -> None:
    door = FrontDoor(FakeService(error=QueueFull("full", retry_after_s=1.5)))
    context = FakeContext()
    await door.grpc.Classify(vireo_message(GOOD), context)
    assert context.trailers["retry-after-ms"] == "1500"
    (reply,) = [item async for item in door.grpc.ClassifyStream(stream_of([vireo_message(GOOD)]), FakeContext())]
    assert reply.error.retry_after_s == 1.5


async def test_deadline_of_the_transport_reaches_the_service_where_it_is_known() -> None:
    class Timed(FakeContext):
        def time_remaining(self) -> float:
            return 60.0

    door = FrontDoor()
    await door.grpc.Classify(vireo_message(GOOD), Timed())
    await door.grpc.Classify(vireo_message(GOOD), FakeContext())
    first, second = door.service.requests
    assert first.deadline_s is not None
    assert second.deadline_s is None


async def test_metrics_hear_of_unary_calls_and_of_every_request_of_a_stream() -> None:
    door = FrontDoor()
    await door.grpc.Classify(vireo_message(GOOD), FakeContext())
    await door.grpc.ModelInfer(infer_message(model_name="none"), FakeContext())
    messages = [vireo_message(GOOD), vireo_message(Ask([GOOD_PNG, b""]))]
    async for _ in door.grpc.ClassifyStream(stream_of(messages), FakeContext()):
        pass
    calls = sorted((c.surface.value, c.model, c.tenant, c.outcome) for c in door.calls.finished)
    assert calls == [
        ("grpc_oip", "unknown", "local", "model_not_found"),
        ("grpc_vireo", MODEL, "local", "ok"),
        ("grpc_vireo_stream", MODEL, "local", "ok"),
        ("grpc_vireo_stream", MODEL, "local", "partial"),
    ]
    assert door.calls.in_flight == 0


@pytest.fixture
async def served() -> AsyncIterator[tuple[FrontDoor, grpc.aio.Channel]]:
    """A front door behind a real gRPC server."""
    door = FrontDoor(FakeService(gate=asyncio.Event()))
    assert door.service.gate is not None
    door.service.gate.set()
    server = grpc.aio.server()
    for add in (add_vireo_to_server, add_inference_to_server, add_health_to_server):
        add(door.methods, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield door, channel
    await server.stop(None)


Served = tuple[FrontDoor, grpc.aio.Channel]


async def test_status_details_and_trailers_reach_a_real_client(served: Served) -> None:
    stub = vireo_pb2_grpc.VireoStub(served[1])
    assert (await stub.Classify(vireo_message(GOOD))).results[0].label == GOOD_LABEL
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Classify(vireo_message(Ask([GOOD_PNG], model="größe")))
    assert caught.value.code() == StatusCode.NOT_FOUND
    trailers = dict(caught.value.trailing_metadata())
    assert json.loads(trailers["vireo-error-bin"])["code"] == "model_not_found"
    assert "größe" in (caught.value.details() or "")


async def test_client_that_cancels_a_unary_call_frees_its_slot(served: Served) -> None:
    door, channel = served
    assert door.service.gate is not None
    door.service.gate.clear()
    call = vireo_pb2_grpc.VireoStub(channel).Classify(vireo_message(GOOD))
    sent = asyncio.ensure_future(call)
    await door.service.entered.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sent
    await settled(door)
    assert door.service.num_cancelled == 1


async def test_client_that_leaves_a_stream_frees_all_its_slots(served: Served) -> None:
    door, channel = served
    assert door.service.gate is not None
    door.service.gate.clear()
    call = vireo_pb2_grpc.VireoStub(channel).ClassifyStream()
    for _ in range(5):
        await call.write(vireo_message(GOOD))
    await until(lambda: door.service.in_flight == 5)
    call.cancel()
    await settled(door)
    assert door.service.num_cancelled == 5
    assert door.calls.in_flight == 0


async def settled(door: FrontDoor) -> None:
    await until(lambda: not door.service.in_flight)


async def test_details_of_the_longest_error_fit_into_the_trailers(served: Served) -> None:
    door, channel = served
    door.service.error = QueueFull("€" * 5000, param="€" * 5000, retry_after_s=1e9)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await vireo_pb2_grpc.VireoStub(channel).Classify(vireo_message(GOOD))
    assert caught.value.code() == StatusCode.RESOURCE_EXHAUSTED
    assert (caught.value.details() or "").startswith("€€€")


@pytest.mark.parametrize("service", ["", "vireo.v1.Vireo", "inference.GRPCInferenceService"])
async def test_health_check_answers_for_every_service(served: Served, service: str) -> None:
    door, channel = served
    stub = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service=service)
    assert (await stub.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
    door.service.ready = False
    assert (await stub.Check(request)).status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_health_check_of_an_unknown_service_is_not_found(served: Served) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health_pb2_grpc.HealthStub(served[1]).Check(health_pb2.HealthCheckRequest(service="x" * 5000))
    assert caught.value.code() == StatusCode.NOT_FOUND


@pytest.fixture
def budgets() -> FrontDoor:
    service = FakeService()
    service.accounts = FakeAccounts()
    keys = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("ada", "bob", "root")}
    return FrontDoor(service, authenticator=Authenticator(keys, False, admins=("root",)))


async def test_budget_over_grpc_is_that_of_the_caller_as_over_http(budgets: FrontDoor) -> None:
    for tenant in ("ada", "bob"):
        reply = await budgets.grpc.GetBudget(vireo_pb2.GetBudgetRequest(), FakeContext([("x-api-key", tenant)]))
        over_http = (await asgi(budgets.app, "GET", "/v1/budget", b"", {"x-api-key": tenant})).json
        assert (reply.tenant, reply.open) == (over_http["tenant"], over_http["open"])
        assert reply.tenant == tenant
        for kind in ("joules", "seconds", "day", "month"):
            said = {field.name: value for field, value in getattr(reply, kind).ListFields()}
            assert said == {name: value for name, value in (over_http[kind] or {}).items() if value}
    assert reply.joules.burst == 0.0, "bob has no quota"
    assert not reply.HasField("day")
    ada = await budgets.grpc.GetBudget(vireo_pb2.GetBudgetRequest(), FakeContext([("x-api-key", "ada")]))
    assert (ada.day.spent_j, ada.day.cap_j, ada.day.resets_in_s) == (500.0, 900.0, 23 * 3600.0)
    assert (ada.month.spent_j, ada.month.HasField("cap_j")) == (700.0, False)


async def test_budget_needs_a_key_and_all_of_them_an_admins(budgets: FrontDoor) -> None:
    context = FakeContext()
    await budgets.grpc.GetBudget(vireo_pb2.GetBudgetRequest(), context)
    assert context.code is StatusCode.UNAUTHENTICATED
    statuses = {}
    for key in ("", "ada", "root"):
        reply = await asgi(budgets.app, "GET", "/v1/budgets", b"", {"x-api-key": key} if key else {})
        statuses[key] = reply.status
    assert statuses == {"": 401, "ada": 403, "root": 200}
    assert [one["tenant"] for one in reply.json["data"]] == ["ada", "bob"]
