"""What people really use against the running system: curl, the command line, tritonclient, probes, scrapers."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import httpx
import jsonschema
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.e2e.conftest import Picture
from tests.e2e.surfaces import SURFACES, Door
from tests.support.clients import Ask
from tests.support.system import MODEL, ROOT, System
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

TRITON = """
import sys
import numpy as np
import tritonclient.{protocol} as protocol
address, model, label, path = sys.argv[1:]
picture = open(path, "rb").read()
client = protocol.InferenceServerClient(address)
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(model)
tensor = protocol.InferInput("IMAGE", [2], "BYTES").set_data_from_numpy(np.array([picture, picture], object))
result = client.infer(model, [tensor], parameters={{"top_k": 3}})
assert [text.decode() for text in result.as_numpy("LABEL")] == [label] * 2, result.as_numpy("LABEL")
assert result.as_numpy("TOP_SCORES").shape == (2, 3) and result.as_numpy("SCORE").dtype == np.float32
assert not any(result.as_numpy("ERROR"))
size = client.get_model_metadata(model)
print("well")
"""


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_tritonclient_works_unchanged(protocol: str, system: System, digits: list[Picture], tmp_path: Path) -> None:
    path = tmp_path / "7.png"
    path.write_bytes(digits[7][0])
    address = system.grpc_address if protocol == "grpc" else system.http_url.removeprefix("http://")
    # A process of its own: its protobuf descriptors have the same names as ours.
    command = [sys.executable, "-c", TRITON.format(protocol=protocol), address, MODEL, "7", str(path)]
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
    assert run.returncode == 2
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


def test_reflection_lists_the_services_and_their_methods(door: Door) -> None:
    database = ProtoReflectionDescriptorDatabase(door.channel)
    services = set(database.get_services())
    assert {"vireo.v1.Vireo", "inference.GRPCInferenceService", "grpc.health.v1.Health"} <= services
    file = database.FindFileContainingSymbol("vireo.v1.Vireo")
    assert {method.name for method in file.service[0].method} == {
        "Classify",
        "ClassifyStream",
        "Chat",
        "GenerateImage",
        "EditImage",
        "GenerateVideo",
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
        # Videos and images have systems of their own (test_video_jobs.py, test_new_family.py); here none is served.
        if "get" in operations and "{version}" not in path and not path.startswith(("/v1/videos", "/v1/images")):
            assert door.http.get(path.replace("{model}", MODEL)).status_code == 200, path
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
    assert grown("vireo_replica_call_images_sum", model=MODEL) == 15
    joules = sum(answer.report["energy_j"] for answer in answers)
    assert grown("vireo_energy_joules_total", model=MODEL, tenant="local", source="estimate") == pytest.approx(joules)


def test_metrics_at_rest_show_nothing_in_flight_and_a_closed_breaker(system: System) -> None:
    wait_until(lambda: system.in_flight() == 0, "in-flight gauge back to 0")
    metrics = system.metrics()
    assert metrics.total("vireo_breaker_state", store="redis") == 0
    assert {"vireo_breaker_state", "vireo_in_flight_requests", "vireo_store_seconds_count"} <= metrics.names()


def test_unknown_paths_and_methods_have_the_shape_of_every_error(door: Door) -> None:
    for method, path, status in (("GET", "/nothing", 404), ("GET", "/v1/classify", 405), ("POST", "/metrics", 405)):
        reply = door.http.request(method, path)
        assert reply.status_code == status
        assert set(reply.json()["error"]) == {"code", "message", "type", "param"}


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
