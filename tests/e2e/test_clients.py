"""What people really use against the running system: curl, the command line, tritonclient, probes, scrapers."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import jsonschema
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from serving.client.exits import Exit
from serving.front.grpc.registration import SERVICES, methods_of, path_of
from tests.e2e.conftest import Picture
from tests.e2e.surfaces import SURFACES, Door, grpc_failure, http_failure
from tests.support.clients import Ask
from tests.support.system import MODEL, ROOT, System
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

TRITON = """
import asyncio, importlib, inspect, queue, sys
import numpy as np
from tritonclient.utils import InferenceServerException
name, address, model, label, path = sys.argv[1:]
protocol = importlib.import_module(f"tritonclient.{name}")
is_grpc, is_aio = "grpc" in name, "aio" in name
loop = asyncio.new_event_loop()

async def opened():
    return protocol.InferenceServerClient(address)

client = loop.run_until_complete(opened()) if is_aio else protocol.InferenceServerClient(address)

def call(method, *args, **named):
    found = getattr(client, method)(*args, **named)
    return loop.run_until_complete(found) if inspect.isawaitable(found) else found

def document(method, *args):
    return call(method, *args, **({"as_json": True} if is_grpc else {}))

def refused(method, *args, **named):
    try:
        call(method, *args, **named)
    except InferenceServerException as error:
        return str(error)
    raise AssertionError(f"{method} is not refused")

assert call("is_server_live") and call("is_server_ready") and call("is_model_ready", model)
assert not call("is_model_ready", "none") and not call("is_model_ready", model, "2")
picture = open(path, "rb").read()
tensor = protocol.InferInput("IMAGE", [2], "BYTES")
tensor.set_data_from_numpy(np.array([picture, picture], object))
result = call("infer", model, [tensor], parameters={"top_k": 3}, priority=1, timeout=60_000_000)
assert [text.decode() for text in result.as_numpy("LABEL")] == [label] * 2, result.as_numpy("LABEL")
assert result.as_numpy("TOP_SCORES").shape == (2, 3) and result.as_numpy("SCORE").dtype == np.float32
assert not any(result.as_numpy("ERROR"))
classes = [protocol.InferRequestedOutput("SCORE", class_count=2)]
texts = call("infer", model, [tensor], outputs=classes).as_numpy("SCORE")
assert texts.shape == (2, 2) and texts[0, 0].decode().split(":")[1:] == [label, label], texts

extensions = document("get_server_metadata")["extensions"]
assert {"statistics", "model_configuration", "classification"} <= set(extensions), extensions
assert document("get_model_metadata", model)["inputs"][0]["name"] == "IMAGE"
config = document("get_model_config", model)
assert config.get("config", config)["backend"] == "vireo", config
index = document("get_model_repository_index")
assert (index["models"] if is_grpc else index) == [{"name": model, "version": "1", "state": "READY"}
    if is_grpc else {"name": model, "version": "1", "state": "READY", "reason": ""}], index
for found in (document("get_inference_statistics"), document("get_inference_statistics", model)):
    (of_model,) = found["model_stats"]
    assert int(of_model["inference_stats"]["success"]["count"]) >= 2, found
    assert int(of_model["inference_count"]) >= 1 and int(of_model["execution_count"]) >= 1, found
assert not document("get_system_shared_memory_status") and not document("get_cuda_shared_memory_status")

for method, *args in (
    ("load_model", model), ("unload_model", model),
    ("update_trace_settings", None, {"trace_level": ["OFF"]}), ("get_trace_settings",),
    ("update_log_settings", {"log_info": True}), ("get_log_settings",),
    ("register_system_shared_memory", "region", "/region", 8), ("unregister_system_shared_memory", "region"),
    ("register_cuda_shared_memory", "region", b"aGFuZGxl" if is_grpc else "aGFuZGxl", 0, 8),
    ("unregister_cuda_shared_memory",),
):
    message = refused(method, *args)
    assert message.startswith("[StatusCode.UNIMPLEMENTED]" if is_grpc else "[404] there is nothing at"), message
assert "'none' is not served here" in refused("infer", "none", [tensor])
assert "'none' is not served here" in refused("get_model_config", "none")
refused("infer", model, [tensor], sequence_id=5, sequence_start=True)

if name == "grpc":
    answers = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    client.async_stream_infer(model, [tensor], request_id="1", enable_empty_final_response=True)
    client.async_stream_infer("none", [tensor], request_id="2")
    got = [answers.get(timeout=20) for _ in range(2)]
    client.stop_stream()
    (good,), (bad,) = [r for r, e in got if e is None], [e for r, e in got if e is not None]
    assert good.get_response().parameters["triton_final_response"].bool_param and "model_not_found" in str(bad)
elif is_grpc:
    async def streamed():
        async def requests():
            yield {"model_name": model, "inputs": [tensor], "enable_empty_final_response": True}
        return [one async for one in client.stream_infer(requests())]
    ((good, bad),) = loop.run_until_complete(streamed())
    assert bad is None and good.as_numpy("LABEL")[0].decode() == label, bad
elif not is_aio:
    assert client.async_infer(model, [tensor]).get_result().as_numpy("LABEL")[0].decode() == label
call("close")
print("well")
"""


@pytest.mark.parametrize("protocol", ["http", "grpc", "http.aio", "grpc.aio"])
def test_tritonclient_works_unchanged_with_every_call(
    protocol: str, system: System, digits: list[Picture], tmp_path: Path
) -> None:
    path = tmp_path / "7.png"
    path.write_bytes(digits[7][0])
    address = system.grpc_address if "grpc" in protocol else system.http_url.removeprefix("http://")
    # A process of its own: its protobuf descriptors have the same names as ours.
    command = [sys.executable, "-c", TRITON, protocol, address, MODEL, "7", str(path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stdout.strip()) == (0, "well"), run.stderr


def test_curl_with_json_and_with_a_file(system: System, digits: list[Picture], tmp_path: Path) -> None:
    path = tmp_path / "digit.png"
    path.write_bytes(digits[4][0])
    body = tmp_path / "body.json"
    body.write_text(json.dumps({"model": MODEL, "image": base64.b64encode(digits[4][0]).decode()}))
    url = f"{system.http_url}/v1/classify"
    for options in (
        ["-H", "content-type: application/json", "-d", f"@{body}"],
        ["-F", f"model={MODEL}", "-F", f"file=@{path}"],
    ):
        run = subprocess.run(["curl", "-sS", url, *options], capture_output=True, text=True, timeout=30, check=True)
        assert json.loads(run.stdout)["results"][0]["label"] == "4"


def curl(*arguments: str) -> str:
    run = subprocess.run(["curl", "-sS", "-i", *arguments], stdout=subprocess.PIPE, timeout=30, check=True)
    return run.stdout.decode()


def test_curl_with_its_other_ways_to_ask(system: System, digits: list[Picture], tmp_path: Path) -> None:
    url, large = system.http_url, tmp_path / "large.json"
    picture = base64.b64encode(digits[4][0]).decode()
    large.write_text(json.dumps({"model": MODEL, "image": picture}) + " " * (2 << 20))
    head = curl("-I", f"{url}/v1/models")
    assert head.startswith("HTTP/1.1 200 ")
    assert head.endswith("\r\n\r\n")
    assert "\r\nallow: OPTIONS, POST\r\n" in curl("-X", "OPTIONS", f"{url}/v1/classify")
    assert "\r\nallow: OPTIONS, POST\r\n" in curl("-T", str(large), f"{url}/v1/classify")
    assert curl("--compressed", "-0", f"{url}/healthz").endswith('{"ready":true}')
    assert curl("--http2-prior-knowledge", f"{url}/healthz").startswith("HTTP/2 200")
    assert curl("--http2", f"{url}/healthz").endswith('{"ready":true}')
    # Above 1 MiB curl asks before it sends.
    asked = ["-H", "expect: 100-continue", "-H", "content-type: application/json", "--data-binary", f"@{large}"]
    answer = curl(f"{url}/v1/classify", *asked)
    assert answer.startswith("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ")
    assert json.loads(answer.split("\r\n\r\n")[-1])["results"][0]["label"] == "4"
    assert curl(f"{url}/v1/nothing", *asked).startswith("HTTP/1.1 404 ")
    etag = next(line.split(": ")[1] for line in curl("-I", f"{url}/docs").splitlines() if line.startswith("etag"))
    known = curl("-H", f"if-none-match: {etag}", f"{url}/docs")
    assert known.startswith("HTTP/1.1 304 ")
    assert "cache-control: no-cache" in known
    assert "content-length" not in known


def test_command_line_classifies_files(system: System, digits: list[Picture], tmp_path: Path) -> None:
    paths = []
    for data, label in digits[:3]:
        paths.append(tmp_path / f"{label}.png")
        paths[-1].write_bytes(data)
    words = ["classify", *map(str, paths), "--url", system.http_url]
    as_json = system.command(*words, "--json", "--top-k", "2")
    assert as_json.returncode == 0, as_json.stderr
    results = json.loads(as_json.stdout)["results"]
    assert [result["label"] for result in results] == ["0", "1", "2"]
    assert [len(result["top_k"]) for result in results] == [2, 2, 2]
    table = system.command(*words)
    assert table.returncode == 0
    assert "0.png" in table.stdout
    assert "operating point" in table.stdout


def test_command_line_tells_of_a_broken_file_by_exit_code(system: System, tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(b"I am not a picture\n" * 9)
    run = system.command("classify", str(path), "--url", system.http_url)
    assert run.returncode == Exit.REFUSED
    assert "unsupported_media_type" in run.stderr


def test_command_line_examples_are_recognised(system: System) -> None:
    paths = sorted((ROOT / "examples").glob("digit-?.png"))
    assert len(paths) >= 3
    run = system.command("classify", *map(str, paths), "--url", system.http_url, "--json")
    labels = [result["label"] for result in json.loads(run.stdout)["results"]]
    assert labels == [path.stem.removeprefix("digit-") for path in paths]


def test_status_tells_where_it_runs(system: System) -> None:
    status = system.status()
    assert status["running"]
    assert status["ready"]
    assert status["http_url"] == system.http_url
    assert status["models"] == [MODEL]


@pytest.mark.parametrize("service", ["", "vireo.v1.Vireo", "inference.GRPCInferenceService"])
def test_grpc_health_check(service: str, door: Door) -> None:
    answer = health_pb2_grpc.HealthStub(door.channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_grpc_health_check_of_an_unknown_service_is_not_found(door: Door) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        health_pb2_grpc.HealthStub(door.channel).Check(health_pb2.HealthCheckRequest(service="none"), timeout=10)
    assert failure.value.code() == grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]


def test_grpc_health_watch_tells_the_state_and_ends_with_the_client(door: Door) -> None:
    watch = health_pb2_grpc.HealthStub(door.channel).Watch(health_pb2.HealthCheckRequest(), timeout=10)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


class _V1:
    """A channel that asks for reflection by its later name: there are no stubs of it on PyPI."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def stream_stream(self, path: str, **options: Any) -> Any:
        return self._channel.stream_stream(path.replace("v1alpha", "v1"), **options)


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_lists_the_services_and_their_methods(version: str, door: Door) -> None:
    database = ProtoReflectionDescriptorDatabase(_V1(door.channel) if version == "v1" else door.channel)
    services = set(database.get_services())
    assert {"vireo.v1.Vireo", "inference.GRPCInferenceService", "grpc.health.v1.Health"} <= services
    file = database.FindFileContainingSymbol("vireo.v1.Vireo")
    assert {method.name for method in file.service[0].method} == {
        "Classify",
        "ClassifyStream",
        "Chat",
        "GenerateImage",
        "GenerateImageStream",
        "EditImage",
        "GenerateVideo",
        "GetBudget",
    }


def test_models_are_listed_and_shown(door: Door) -> None:
    (listed,) = door.http.get("/v1/models").json()["data"]
    assert listed == door.http.get(f"/v1/models/{MODEL}").json()
    assert (listed["id"], listed["object"], listed["owned_by"]) == (MODEL, "model", "vireo")
    assert listed["vireo"]["io"]["labels"] == [str(digit) for digit in range(10)]
    assert {"exit_1=2,exit_2=2,exit_3=2", "exit_1=0,exit_2=0,exit_3=0"} <= set(listed["vireo"]["operating_points"])
    assert door.http.get("/v1/models/none").status_code == 404


def test_openapi_document_is_valid_and_names_every_path_that_answers(door: Door) -> None:
    document = door.http.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    for name, schema in document["components"]["schemas"].items():
        jsonschema.Draft202012Validator.check_schema(schema), name
    for path, operations in document["paths"].items():
        # Videos, images and experts have systems of their own (test_video_jobs.py, test_image_nano.py); here none is
        # served.
        is_elsewhere = path.startswith(("/v1/videos", "/v1/images")) or path.endswith("/experts")
        if "get" in operations and "{version}" not in path and not is_elsewhere:
            values = {"model": MODEL, "region": "x", "name": "index.html"}
            assert door.http.get(path.format(**values)).status_code == 200, path
    assert {"/v1/classify", "/v2/models/{model}/infer", "/v1/models", "/metrics"} <= set(document["paths"])


def test_real_answer_matches_the_openapi_document(door: Door, digits: list[Picture]) -> None:
    document = door.http.get("/openapi.json").json()
    schema = document["paths"]["/v1/classify"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    validator = jsonschema.Draft202012Validator({**schema, "components": document["components"]})
    image = base64.b64encode(digits[3][0]).decode()
    answer = door.http.post("/v1/classify", json={"model": MODEL, "images": [image, "####"]})
    assert answer.status_code == 200
    validator.validate(answer.json())


def test_metrics_count_requests_by_surface_model_tenant_and_outcome(
    system: System, door: Door, new_picture: Callable[[], Picture]
) -> None:
    labels = {"http_json": "http_classify", "http_oip": "http_oip", "grpc_vireo": "grpc_vireo", "grpc_oip": "grpc_oip"}
    before = system.metrics()
    for name in labels:
        assert SURFACES[name](door, Ask([new_picture()[0]], model=MODEL)).error is None
        assert SURFACES[name](door, Ask([b"junk"], model=MODEL)).error == "unsupported_media_type"
    after = system.metrics()

    def grown(name: str, **wanted: str) -> float:
        return after.total(name, **wanted) - before.total(name, **wanted)

    for surface in labels.values():
        ours = {"surface": surface, "model": MODEL, "tenant": "local"}
        assert grown("vireo_requests_total", outcome="ok", **ours) == 1
        assert grown("vireo_requests_total", outcome="unsupported_media_type", **ours) == 1
        assert grown("vireo_request_seconds_count", surface=surface, model=MODEL) == 2
    assert grown("vireo_rejections_total", reason="unsupported_media_type") == 4
    lookups = {
        outcome: grown("vireo_cache_lookups_total", outcome=outcome) for outcome in ("hit", "miss", "unavailable")
    }
    assert lookups["hit"] == 0
    assert lookups["miss"] + lookups["unavailable"] == 4, "a busy machine may be slower than the limit of a look-up"


@pytest.mark.parametrize("accept", ["text/plain;version=0.0.4", "application/openmetrics-text;version=1.0.0", "*/*"])
def test_metrics_are_read_by_prometheus_own_parser(door: Door, accept: str) -> None:
    reply = door.http.get("/metrics", headers={"accept": accept}).raise_for_status()
    is_open = "openmetrics" in accept
    assert reply.headers["content-type"].startswith("application/openmetrics-text" if is_open else "text/plain")
    assert reply.text.endswith("# EOF\n") == is_open
    families = list((openmetrics_families if is_open else text_string_to_metric_families)(reply.text))
    names = [family.name for family in families]
    assert len(set(names)) == len(names)
    assert [family.name for family in families if not family.documentation or family.type == "unknown"] == []
    series = [(sample.name, *sorted(sample.labels.items())) for family in families for sample in family.samples]
    assert len(set(series)) == len(series)
    assert "vireo_requests" in names
    for family in families:
        if family.type == "counter":
            assert {sample.name for sample in family.samples} <= {f"{family.name}_total"}


def test_metrics_of_the_engine_add_up(system: System, door: Door, new_picture: Callable[[], Picture]) -> None:
    before = system.metrics()
    answers = [SURFACES["grpc_vireo"](door, Ask([new_picture()[0] for _ in range(5)], model=MODEL)) for _ in range(3)]
    exits = [item.exit for answer in answers for item in answer.items]
    assert len(exits) == 15
    # A replica's figures of a batch are written after its answers have left.
    after = wait_until(
        lambda: (m := system.metrics()).total("vireo_exits_total") - before.total("vireo_exits_total") >= 15 and m,
        "the exits of 15 images",
    )

    def grown(name: str, **wanted: str) -> float:
        return after.total(name, **wanted) - before.total(name, **wanted)

    for number in (1, 2, 3, 4):
        assert grown("vireo_exits_total", model=MODEL, exit=str(number)) == exits.count(number)
    assert grown("vireo_queue_seconds_count") == grown("vireo_compute_seconds_count") == 15
    # Every image passes the first stage once, in one batch or another.
    assert grown("vireo_stage_batch_size_sum", stage="1") == 15
    assert 1 <= grown("vireo_stage_batch_size_count", stage="1") <= 15
    assert grown("vireo_cost_ratio_count", model=MODEL) >= 1
    assert grown("vireo_predicted_seconds_total", model=MODEL, kind="stage_1") > 0.0
    assert grown("vireo_actual_seconds_total", model=MODEL, kind="stage_1") > 0.0
    assert 0.25 <= after.total("vireo_cost_correction_ratio", model=MODEL, kind="stage_1") <= 4.0
    assert grown("vireo_replica_call_images_sum", model=MODEL) == 15
    joules = sum(answer.report["energy_j"] for answer in answers)
    assert grown("vireo_energy_joules_total", model=MODEL, tenant="local", source="estimate") == pytest.approx(joules)


def test_metrics_at_rest_show_nothing_in_flight_and_a_closed_breaker(system: System) -> None:
    wait_until(lambda: system.in_flight() == 0, "in-flight gauge back to 0")
    metrics = system.metrics()
    assert metrics.total("vireo_breaker_state", store="redis") == 0
    assert {"vireo_breaker_state", "vireo_in_flight_requests", "vireo_store_seconds_count"} <= metrics.names()


def test_unknown_paths_and_methods_have_the_shape_of_every_error(door: Door) -> None:
    for method, path, status in (
        ("GET", "/nothing", 404),
        ("GET", "/v1/classify", 405),
        ("POST", "/metrics", 405),
        ("GET", "/v2/nothing", 404),
        ("POST", "/v2", 405),
    ):
        assert http_failure(door.http.request(method, path)).status == status


BROKEN = {"no_tag": b"\xff", "cut_short": b"\x0a\x05abc", "other_wire_type": b"\x0b\x0c", "no_utf8": b"\x0a\x01\xff"}
IN_STREAM = ("ClassifyStream", "ModelStreamInfer")
"""They answer each request with a message of its own, and go on."""


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_bytes_that_are_no_message_are_told_so_by_every_method(data: bytes, door: Door) -> None:
    for method in [method for service in SERVICES for method in methods_of(service)]:
        call = door.channel.stream_stream(path_of(method))(iter([data]), timeout=20)
        if method.name in IN_STREAM:
            (refusal,) = call
            assert b"invalid_request" in refusal or b"unknown_field" in refusal, path_of(method)
            continue
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        failure = grpc_failure(caught.value)
        assert failure.status is grpc.StatusCode.INVALID_ARGUMENT, (path_of(method), failure)
        assert failure.error in ("invalid_request", "unknown_field"), path_of(method)
        assert failure.extra["x-request-id"], path_of(method)


def test_request_id_of_the_caller_comes_back(door: Door, digits: list[Picture]) -> None:
    ask = Ask([digits[0][0]], model=MODEL)
    for name in ("http_json", "grpc_vireo", "grpc_oip"):
        metadata = {"x-request-id": "my-own.id"}
        assert SURFACES[name](door, ask, **metadata).extra["x-request-id"] == "my-own.id", name
        assert SURFACES[name](door, ask).extra["x-request-id"], name


def test_http_connection_is_kept_and_many_clients_are_served(system: System, digits: list[Picture]) -> None:
    body = {"model": MODEL, "image": base64.b64encode(digits[1][0]).decode()}
    with httpx.Client(base_url=system.http_url, limits=httpx.Limits(max_connections=1)) as http:
        assert [http.post("/v1/classify", json=body).json()["results"][0]["label"] for _ in range(20)] == ["1"] * 20
