"""HTTP paths: shapes, errors, headers, keys, cancellation."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import math
import struct
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jsonschema
import numpy as np
import pytest

from models.contract import ExpertFacts
from serving.delivery.job.experts import ExpertReport, PlacedFacts
from serving.domain import Priority
from serving.front.auth import Authenticator
from serving.gateway import http
from serving.gateway.http import ROUTES, build_http_app, document
from serving.limits import IngressLimits
from serving.system.haproxy_http import METHODS
from tests.support import fake_service
from tests.support.clients import (
    GOOD_LABEL,
    GOOD_PNG,
    METRICS_TYPE,
    FrontDoor,
    HttpReply,
    asgi,
    length_prefixed,
    metrics_page,
    multipart,
    split_prefixed,
)
from tests.support.fake_service import CHAT_MODEL, MODEL, FakeService, joined, make_card
from tests.support.fake_videos import VIDEO_MODEL, make_video_card

IMAGE = base64.b64encode(GOOD_PNG).decode()
BODY = json.dumps({"model": MODEL, "image": IMAGE}).encode()
UTF_16 = BODY.decode().encode("utf-16")
JSON = {"content-type": "application/json"}
KEYS = {"ada": hashlib.sha256(b"key-of-ada").hexdigest()}
INFER = f"/v2/models/{MODEL}/infer"

GET_PATHS = [
    "/v1/models",
    f"/v1/models/{MODEL}",
    f"/v1/models/{CHAT_MODEL}",
    "/v2",
    f"/v2/models/{MODEL}",
    f"/v2/models/{MODEL}/versions/1",
    f"/v2/models/{MODEL}/ready",
    f"/v2/models/{MODEL}/versions/1/ready",
    "/v2/health/live",
    "/v2/health/ready",
    "/healthz",
    "/health",
    "/metrics",
    "/openapi.json",
    "/",
]
NEED_NO_KEY = {"/v2/health/live", "/v2/health/ready", "/healthz", "/health", "/metrics", "/openapi.json", "/"}


@pytest.fixture(scope="module")
def openapi() -> Any:
    return document()


def check(openapi: Any, schema: str, document: Any) -> None:
    jsonschema.validate(document, {"$ref": f"#/components/schemas/{schema}", "components": openapi["components"]})


async def test_classify_answers_in_the_documented_shape(openapi: Any) -> None:
    reply = await FrontDoor().post_json({"model": MODEL, "images": [IMAGE, "!"], "top_k": 2})
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    document = reply.json
    check(openapi, "ClassifyAnswer", document)
    assert document["object"] == "list"
    assert document["model"] == MODEL
    first, second = document["results"]
    assert (first["index"], first["label"], first["exit"]) == (0, GOOD_LABEL, 4)
    assert [entry["label"] for entry in first["top_k"]] == [GOOD_LABEL, "class 4"]
    assert first["score"] == first["top_k"][0]["score"]
    assert set(second) == {"index", "error"}
    assert document["vireo"] == {
        "operating_point": "fast",
        "energy_j": 0.25,
        "energy_source": "estimate",
        "queue_ms": 1.5,
        "compute_ms": 2.5,
        "cache": "miss",
        "degraded": ["exit_threshold"],
        "degradation": None,
        "guard": {"score": 0.0, "action": "normal", "reasons": []},
    }


async def test_every_answer_to_work_says_how_many_requests_its_caller_may_have_at_a_time() -> None:
    service = replace(joined(FakeService()), places={"ada": 7}.get)
    app = build_http_app(service, Authenticator(KEYS, False), IngressLimits(), None)
    chat = {"model": CHAT_MODEL, "messages": [{"role": "user", "content": "hi"}]}
    asked = {
        "/v1/classify": ({"model": MODEL, "image": IMAGE}, 200),
        "/v2/models/nothing/infer": ({}, 404),
        "/v1/chat/completions": ({**chat, "stream": True, "n": 0}, 400),
        "/v1/responses": ({"model": MODEL, "image": IMAGE}, 400),
    }
    for path, (body, status) in asked.items():
        for key, told in (("key-of-ada", "7"), ("wrong", None)):
            reply = await asgi(app, "POST", path, json.dumps(body).encode(), {**JSON, "x-api-key": key})
            assert reply.status == (status if told else 401), path
            assert reply.headers.get("x-vireo-places") == told, path
    models = await asgi(app, "GET", "/v1/models", headers={"x-api-key": "key-of-ada"})
    assert "x-vireo-places" not in models.headers, "no work"


@pytest.mark.parametrize("path", GET_PATHS)
async def test_get_paths_answer_and_head_too(path: str) -> None:
    door = FrontDoor()
    for method in ("GET", "HEAD"):
        reply = await asgi(door.app, method, path)
        assert reply.status == 200
        assert reply.headers["content-type"] == (METRICS_TYPE if path == "/metrics" else "application/json")


async def test_model_paths_answer_in_the_documented_shapes(openapi: Any) -> None:
    door = FrontDoor()
    documents = {path: (await asgi(door.app, "GET", path)).json for path in GET_PATHS if path != "/metrics"}
    check(openapi, "ModelListAnswer", documents["/v1/models"])
    check(openapi, "ModelAnswer", documents[f"/v1/models/{MODEL}"])
    check(openapi, "ModelAnswer", documents[f"/v1/models/{CHAT_MODEL}"])
    check(openapi, "ServerMetadataAnswer", documents["/v2"])
    check(openapi, "ModelMetadataAnswer", documents[f"/v2/models/{MODEL}"])
    assert documents["/v1/models"]["data"] == [documents[f"/v1/models/{name}"] for name in (CHAT_MODEL, MODEL)]
    assert documents[f"/v2/models/{MODEL}/versions/1"] == documents[f"/v2/models/{MODEL}"]
    assert documents["/v2/health/live"] == {"live": True}
    assert (await asgi(door.app, "GET", "/metrics")).body == b"# named\n"


async def test_openapi_describes_every_path_that_is_served(openapi: Any) -> None:
    app = FrontDoor().app
    served = {(route.path, method.lower()) for route in app.routes for method in route.methods - {"HEAD"}}
    described = {(path, method) for path, item in openapi["paths"].items() for method in item}
    assert served == described
    for item in openapi["paths"].values():
        for operation in item.values():
            check(openapi, "ErrorAnswer", {"error": {"code": "c", "message": "m", "type": "t", "param": None}})
            assert {"400", "401", "404", "405", "413", "415", "422", "429", "500", "503", "504"} <= set(
                operation["responses"]
            )


BAD, UNKNOWN, MEDIA = "invalid_request", "unknown_field", "unsupported_media_type"
CLASSIFY = ("POST", "/v1/classify")

BAD_REQUESTS: list[tuple[str, str, str, dict[str, str], bytes, int, str]] = [
    ("nothing_there", "GET", "/nope", {}, b"", 404, "not_found"),
    ("nothing_below_v2", "GET", "/v2/nope", {}, b"", 404, "not_found"),
    ("post_v2", "POST", "/v2", {}, b"", 405, "method_not_allowed"),
    ("long_key_v2", "GET", "/v2", {"x-api-key": "k" * 5000}, b"", 400, BAD),
    ("claimed_length_v2", "POST", INFER, JSON | {"content-length": "99999999999"}, b"{}", 413, "payload_too_large"),
    ("trailing_slash", "GET", "/v1/models/", {}, b"", 404, "not_found"),
    ("odd_path", "GET", "/v1/\x00\ud7ff", {}, b"", 404, "not_found"),
    ("get_classify", "GET", "/v1/classify", {}, b"", 405, "method_not_allowed"),
    ("put_models", "PUT", "/v1/models", {}, b"", 405, "method_not_allowed"),
    ("options_of_nothing", "OPTIONS", "/v1/nope", {}, b"", 404, "not_found"),
    ("two_types", *CLASSIFY, JSON | {"Content-Type": "text/plain"}, BODY, 400, BAD),
    ("two_keys", *CLASSIFY, JSON | {"x-api-key": "a", "X-Api-Key": "a"}, BODY, 401, "invalid_api_key"),
    ("two_bearers", *CLASSIFY, {"authorization": "a", "Authorization": "b"}, BODY, 401, "invalid_api_key"),
    ("two_budgets", *CLASSIFY, JSON | {"x-vireo-energy-j": "1", "X-Vireo-Energy-J": "2"}, BODY, 400, BAD),
    ("delete_infer", "DELETE", INFER, {}, b"", 405, "method_not_allowed"),
    ("unknown_model", "GET", "/v1/models/none", {}, b"", 404, "model_not_found"),
    ("unknown_model_v2", "GET", "/v2/models/none", {}, b"", 404, "model_not_found"),
    ("unknown_model_ready", "GET", "/v2/models/none/ready", {}, b"", 404, "model_not_found"),
    ("unknown_version", "GET", f"/v2/models/{MODEL}/versions/2", {}, b"", 404, "model_not_found"),
    ("no_type", *CLASSIFY, {}, BODY, 415, MEDIA),
    ("form_type", *CLASSIFY, {"content-type": "application/x-www-form-urlencoded"}, BODY, 415, MEDIA),
    ("text_type", *CLASSIFY, {"content-type": "text/plain"}, BODY, 415, MEDIA),
    ("image_type", *CLASSIFY, {"content-type": "image/png"}, GOOD_PNG, 415, MEDIA),
    ("utf_16", *CLASSIFY, {"content-type": "application/json; charset=utf-16"}, UTF_16, 400, BAD),
    ("gzip", *CLASSIFY, JSON | {"content-encoding": "gzip"}, BODY, 415, MEDIA),
    ("infer_type", "POST", INFER, {"content-type": "text/plain"}, b"{}", 415, MEDIA),
    ("infer_gzip", "POST", INFER, {"content-encoding": "deflate"}, b"{}", 415, MEDIA),
    ("claimed_length", *CLASSIFY, JSON | {"content-length": "99999999999"}, BODY, 413, "payload_too_large"),
    ("bad_length", *CLASSIFY, JSON | {"content-length": "x"}, BODY, 400, BAD),
    ("latency_nan", *CLASSIFY, JSON | {"x-vireo-latency-ms": "nan"}, BODY, 400, BAD),
    ("latency_inf", *CLASSIFY, JSON | {"x-vireo-latency-ms": "1e999"}, BODY, 400, BAD),
    ("latency_zero", *CLASSIFY, JSON | {"x-vireo-latency-ms": "0"}, BODY, 400, BAD),
    ("energy_negative", *CLASSIFY, JSON | {"x-vireo-energy-j": "-5"}, BODY, 400, BAD),
    ("energy_text", "POST", INFER, JSON | {"x-vireo-energy-j": "lots"}, b'{"inputs": []}', 400, BAD),
    ("long_header", *CLASSIFY, JSON | {"x-vireo-energy-j": "1" * 5000}, BODY, 400, BAD),
    ("long_key", *CLASSIFY, JSON | {"authorization": "Bearer " + "k" * 5000}, BODY, 400, BAD),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "method", "path", "headers", "body", "status", "code"), BAD_REQUESTS, ids=[row[0] for row in BAD_REQUESTS]
)
async def test_bad_request_has_the_error_shape(
    name: str, method: str, path: str, headers: dict[str, str], body: bytes, status: int, code: str
) -> None:
    door = FrontDoor()
    reply = await asgi(door.app, method, path, body, headers)
    assert (reply.status, reply.error["code"]) == (status, code)
    assert isinstance(reply.json["error"], str) == path.startswith("/v2")
    assert reply.headers["content-type"] == "application/json"
    assert not door.service.requests
    if status == 405:
        assert reply.headers["allow"]


async def test_query_that_is_no_text_does_not_hide_what_is_wrong() -> None:
    door = FrontDoor()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await door.app(scope | {"query_string": b"\xff"}, receive, send)

    for method, path, status in (("PUT", "/v2/models/none", 405), ("GET", "/nope", 404), ("GET", "/v1/videos", 400)):
        assert (await asgi(app, method, path)).status == status  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/v1/videos", "GET, HEAD, OPTIONS, POST"),
        ("/v1/videos/a", "DELETE, GET, HEAD, OPTIONS"),
        ("/v1/videos/sync", "DELETE, GET, HEAD, OPTIONS, POST"),
        ("/v1/classify", "OPTIONS, POST"),
        ("/healthz", "GET, HEAD, OPTIONS"),
    ],
)
async def test_every_method_of_a_path_is_told(path: str, methods: str) -> None:
    app = FrontDoor().app
    asked = await asgi(app, "OPTIONS", path)
    assert (asked.status, asked.headers["allow"], asked.body) == (204, methods, b"")
    refused = await asgi(app, "PATCH", path)
    assert (refused.status, refused.headers["allow"]) == (405, methods)
    assert methods in refused.error["message"]


def test_haproxy_knows_every_method() -> None:
    assert set(METHODS) == {"HEAD", "OPTIONS"} | {route.method for route in ROUTES}


@pytest.mark.parametrize("charset", ["utf-8", "UTF8", "iso-8859-1", "nonsense", '"utf-16"'])
async def test_charset_of_json_has_no_meaning(charset: str) -> None:
    reply = await FrontDoor().post_json(BODY, **{"content-type": f"application/json; charset={charset}"})
    assert reply.status == 200


async def test_lists_of_more_than_one_line_are_read_in_full() -> None:
    etag = (await asgi(FrontDoor().app, "GET", "/docs")).headers["etag"]
    for known in ({"if-none-match": etag, "If-None-Match": '"x"'}, {"if-none-match": '"x"', "If-None-Match": etag}):
        assert (await asgi(FrontDoor().app, "GET", "/docs", b"", known)).status == 304


def one_input(**changes: Any) -> Any:
    return {"inputs": [{"name": "IMAGE", "datatype": "BYTES"} | changes]}


NAN_PIXELS = one_input(name="PIXELS", datatype="FP32", shape=[1, 1, 1, 3], data=[0, 0, math.nan])
SHARED = "parameters.shared_memory_region"
CLASSES = {"name": "LABEL", "parameters": {"classification": 3}}
INFER_BODIES: list[tuple[str, Any, str, str]] = [
    ("empty", b"", BAD, "body"),
    ("list", b"[]", BAD, "body"),
    ("no_inputs", {}, BAD, "inputs"),
    ("empty_inputs", {"inputs": []}, BAD, "inputs"),
    ("many_inputs", {"inputs": one_input(shape=[1])["inputs"] * 9}, BAD, "inputs"),
    (UNKNOWN, {"inputs": [], "model": "x"}, UNKNOWN, "model"),
    ("unknown_input_field", one_input(shape=[1], dtype=1), UNKNOWN, "inputs.0.dtype"),
    ("no_shape", one_input(), BAD, "inputs.0.shape"),
    ("text_shape", one_input(shape="1"), BAD, "inputs.0.shape"),
    ("float_shape", one_input(shape=[1.0]), BAD, "inputs.0.shape.0"),
    ("nan_shape", one_input(shape=[math.nan]), BAD, "inputs.0.shape.0"),
    ("nan_pixels", NAN_PIXELS, "invalid_image", "PIXELS"),
    ("no_data", one_input(shape=[1]), BAD, "IMAGE"),
    ("binary_without_header", one_input(shape=[1], parameters={"binary_data_size": 4}), BAD, "inputs"),
    ("binary_negative", one_input(shape=[1], parameters={"binary_data_size": -4}), BAD, "inputs"),
    ("binary_boolean", one_input(shape=[1], parameters={"binary_data_size": True}), BAD, "inputs"),
    ("shared_memory", one_input(shape=[1], parameters={"shared_memory_region": "x"}), UNKNOWN, SHARED),
    ("classification", {"inputs": [], "outputs": [CLASSES]}, BAD, "outputs"),
    ("unknown_output", {"inputs": [], "outputs": [{"name": "LOGITS"}]}, UNKNOWN, "outputs"),
    ("long_id", {"inputs": [], "id": "i" * 300}, BAD, "id"),
    ("unknown_parameter", {"inputs": [], "parameters": {"seed": 1}}, UNKNOWN, "parameters.seed"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "body", "code", "param"), INFER_BODIES, ids=[row[0] for row in INFER_BODIES])
async def test_bad_infer_body_is_refused_naming_the_field(name: str, body: Any, code: str, param: str) -> None:
    door = FrontDoor()
    reply = await door.post_json(body, INFER)
    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, code, param)


@pytest.mark.parametrize("length", ["-1", "x", "1e2", "999999", "٣", ""])
async def test_bad_inference_header_length_is_refused(length: str) -> None:
    headers = [(b"inference-header-content-length", length.encode())]
    door = FrontDoor()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await door.app(scope | {"headers": scope["headers"] + headers}, receive, send)

    reply = await asgi(app, "POST", INFER, b'{"inputs": []}')  # type: ignore[arg-type]
    assert (reply.status, reply.error["code"]) == (400, "invalid_request")


async def test_joules_that_no_meter_read_are_null_and_no_parameter(
    openapi: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = replace(fake_service.make_report(), energy_j=None, energy_source="nvml")
    monkeypatch.setattr(fake_service, "make_report", lambda: unknown)
    answer = (await FrontDoor().post_json({"model": MODEL, "images": [IMAGE]})).json
    check(openapi, "ClassifyAnswer", answer)
    assert (answer["vireo"]["energy_j"], answer["vireo"]["energy_source"]) == (None, "nvml")
    tensor = {"name": "IMAGE", "datatype": "BYTES", "shape": [1], "data": [IMAGE]}
    parameters = (await FrontDoor().post_json({"inputs": [tensor]}, INFER)).json["parameters"]
    assert parameters["vireo_energy_source"] == "nvml"
    assert "vireo_energy_j" not in parameters


async def test_json_tensors_are_served(openapi: Any) -> None:
    tensor = {"name": "IMAGE", "datatype": "BYTES", "shape": [2], "data": [IMAGE, "!"]}
    document = {"id": "abc", "inputs": [tensor], "outputs": [{"name": "LABEL"}, {"name": "ERROR"}]}
    reply = await FrontDoor().post_json(document, f"/v2/models/{MODEL}/versions/1/infer")
    assert reply.status == 200
    check(openapi, "InferAnswer", reply.json)
    assert (reply.json["id"], reply.json["model_version"]) == ("abc", "1")
    assert reply.json["parameters"]["vireo_energy_j"] == 0.25
    label, error = reply.json["outputs"]
    assert label == {"name": "LABEL", "datatype": "BYTES", "shape": [2], "data": [GOOD_LABEL, ""]}
    assert error["data"][0] == ""
    assert json.loads(error["data"][1])["code"] == "invalid_image"


async def binary(parameters: dict[str, Any], outputs: list[Any] | None, tail: bytes = b"") -> HttpReply:
    raw = length_prefixed([GOOD_PNG])
    tensor = {"name": "IMAGE", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(raw)}}
    document = {"inputs": [tensor], "parameters": parameters} | ({"outputs": outputs} if outputs else {})
    head = json.dumps(document).encode()
    headers = {"inference-header-content-length": str(len(head)), "content-type": "application/octet-stream"}
    return await asgi(FrontDoor().app, "POST", INFER, head + raw + tail, headers)


async def test_binary_outputs_follow_the_json_in_order() -> None:
    reply = await binary({"binary_data_output": True}, None)
    assert reply.headers["content-type"] == "application/octet-stream"
    length = int(reply.headers["inference-header-content-length"])
    head, tail = json.loads(reply.body[:length]), reply.body[length:]
    raw = {}
    for tensor in head["outputs"]:
        size = tensor["parameters"]["binary_data_size"]
        raw[tensor["name"]], tail = tail[:size], tail[size:]
    assert tail == b""
    assert split_prefixed(raw["LABEL"]) == [GOOD_LABEL.encode()]
    assert struct.unpack("<i", raw["EXIT"]) == (4,)


async def test_each_output_may_choose_its_form() -> None:
    outputs = [{"name": "EXIT", "parameters": {"binary_data": False}}, {"name": "LABEL"}]
    reply = await binary({"binary_data_output": True}, outputs)
    head = json.loads(reply.body[: int(reply.headers["inference-header-content-length"])])
    assert head["outputs"][0]["data"] == [4]
    assert head["outputs"][1]["parameters"] == {"binary_data_size": 4 + len(GOOD_LABEL)}


async def test_bytes_after_the_last_input_are_refused() -> None:
    assert (await binary({}, None, b"x")).error["param"] == "body"


async def test_pixels_of_an_impossible_size_are_refused_by_the_service_limits() -> None:
    tensor = {"name": "PIXELS", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [1, 2, 3]}
    reply = await FrontDoor().post_json({"inputs": [tensor]}, INFER)
    assert (reply.status, reply.error["code"]) == (400, "invalid_image")


async def test_pixels_are_served() -> None:
    array = np.full((1, 8, 8, 3), 250)
    tensor = {"name": "PIXELS", "datatype": "UINT8", "shape": [1, 8, 8, 3], "data": array.flatten().tolist()}
    reply = await FrontDoor().post_json({"inputs": [tensor], "outputs": [{"name": "LABEL"}]}, INFER)
    assert reply.json["outputs"][0]["data"] == ["class 9"]


@pytest.mark.parametrize(
    ("proposed", "echoed"),
    [("abc-1.2_X", True), ("a" * 128, True), ("a" * 129, False), ("a b", False), ("é", False), ("a;b", False)],
)
async def test_request_id_is_echoed_only_if_it_is_harmless(proposed: str, echoed: bool) -> None:
    door = FrontDoor()
    reply = await door.post_json(BODY, **{"x-request-id": proposed})
    assert (reply.headers["x-request-id"] == proposed) is echoed
    assert door.service.requests[0].request_id == reply.headers["x-request-id"]


async def test_request_id_is_left_to_the_server_around_if_so_told() -> None:
    app = build_http_app(FakeService(), Authenticator({}, True), IngressLimits(), lambda: b"", adds_request_id=False)
    for path in ("/v2", "/nope"):
        assert "x-request-id" not in (await asgi(app, "GET", path)).headers


async def test_every_answer_has_a_request_id() -> None:
    door = FrontDoor()
    for path in (*GET_PATHS, "/nope"):
        assert (await asgi(door.app, "GET", path)).headers["x-request-id"]


async def test_budget_headers_are_a_fallback_on_every_body() -> None:
    door = FrontDoor()
    headers = {"x-vireo-latency-ms": "20", "x-vireo-energy-j": "1.5e0"}
    body, content_type = multipart({"model": MODEL, "vireo": '{"latency_ms": 30}'}, [GOOD_PNG])
    await asgi(door.app, "POST", "/v1/classify", body, {"content-type": content_type, **headers})
    await door.post_json(BODY, **headers)
    tensor = {"name": "IMAGE", "datatype": "BYTES", "shape": [1], "data": [IMAGE]}
    await door.post_json({"inputs": [tensor], "parameters": {"vireo_energy_j": 7}}, INFER, **headers)
    budgets = [(request.budget.latency_ms, request.budget.energy_j) for request in door.service.requests]
    assert budgets == [(30.0, 1.5), (20.0, 1.5), (20.0, 7.0)]


@pytest.mark.parametrize("path", [*GET_PATHS, "/v1/classify", INFER])
async def test_paths_that_need_a_key_refuse_without_one(path: str) -> None:
    door = FrontDoor(authenticator=Authenticator(KEYS, False))
    method = "GET" if path in GET_PATHS else "POST"
    without = await asgi(door.app, method, path, BODY, JSON)
    if path in NEED_NO_KEY:
        assert without.status == 200
        return
    assert (without.status, without.error["code"]) == (401, "invalid_api_key")
    assert without.headers["www-authenticate"].startswith("Bearer")
    for headers in ({"authorization": "Bearer key-of-ada"}, {"x-api-key": "key-of-ada"}):
        assert (await asgi(door.app, method, path, BODY, JSON | headers)).status in (200, 400)


@pytest.mark.parametrize(
    "sent", [{"origin": "https://evil.example"}, {"origin": "null"}, {"host": "evil.example:8000"}]
)
async def test_without_keys_a_browser_speaks_for_no_other_site(sent: dict[str, str]) -> None:
    door = FrontDoor()
    here = {"host": "localhost:8000", "origin": "http://localhost:8000"}
    for method, path, body in (("GET", "/v1/models", b""), ("POST", "/v1/classify", BODY)):
        reply = await asgi(door.app, method, path, body, JSON | here | sent)
        assert (reply.status, reply.error["code"], reply.error["param"]) == (403, "forbidden", next(iter(sent)))
        assert door.service.requests == []
        assert (await asgi(door.app, method, path, body, JSON | here)).status != 403


@pytest.mark.parametrize("needs_key", [False, True])
async def test_metrics_name_tenants_to_admins_only(needs_key: bool) -> None:
    keys = KEYS | {"unknown": hashlib.sha256(b"key-of-ops").hexdigest()}  # a name that callers have who are not known
    authenticator = Authenticator(keys, False, admins=["unknown"])
    app = build_http_app(FakeService(), authenticator, IngressLimits(), metrics_page, metrics_needs_key=needs_key)

    async def scrape(**headers: str) -> tuple[int, bytes]:
        reply = await asgi(app, "GET", "/metrics", headers=headers)
        return reply.status, reply.body if reply.status == 200 else b""

    assert await scrape() == ((401, b"") if needs_key else (200, b"# metrics\n"))
    assert await scrape(**{"x-api-key": "key-of-ada"}) == (200, b"# metrics\n")
    assert await scrape(**{"x-api-key": "key-of-ops"}) == (200, b"# named\n")
    assert await scrape(authorization="Bearer key-of-ops") == (200, b"# named\n")
    assert await scrape(**{"x-api-key": "key-of-eve"}) == (401, b""), "a wrong key is not the same as none"


async def test_metrics_are_read_beside_the_event_loop() -> None:
    threads: list[int] = []

    def page(accept: str, *, names_tenants: bool) -> tuple[bytes, str]:
        threads.append(threading.get_ident())
        return metrics_page(accept, names_tenants=names_tenants)

    app = build_http_app(FakeService(), Authenticator({}, True), IngressLimits(), page)
    assert (await asgi(app, "GET", "/metrics")).status == 200
    assert threads != [threading.get_ident()]


async def test_metrics_may_be_kept_off_the_public_port() -> None:
    app = build_http_app(FakeService(), Authenticator({}, True), IngressLimits(), None)
    reply = await asgi(app, "GET", "/metrics")
    assert (reply.status, reply.error["code"]) == (404, "not_found")


@pytest.mark.parametrize("client", [("203.0.113.7", 1), None, ("", 0)])
async def test_without_keys_a_remote_caller_is_forbidden(client: Any) -> None:
    reply = await asgi(FrontDoor().app, "POST", "/v1/classify", BODY, JSON, client=client)
    assert (reply.status, reply.error["code"]) == (403, "forbidden")


async def test_body_is_not_read_before_the_caller_is_known() -> None:
    door = FrontDoor(authenticator=Authenticator(KEYS, False))

    async def receive() -> Any:
        raise AssertionError("the body of a stranger was read")

    assert (await asgi(door.app, "POST", "/v1/classify", BODY, JSON, receive=receive)).status == 401


async def test_tenant_of_the_key_reaches_the_service() -> None:
    door = FrontDoor(authenticator=Authenticator(KEYS, False))
    await door.post_json(BODY, **{"x-api-key": "key-of-ada"})
    assert door.service.requests[0].tenant == "ada"


@pytest.mark.parametrize("path", ["/healthz", "/health", "/v2/health/ready", f"/v2/models/{MODEL}/ready"])
async def test_server_that_cannot_answer_is_not_ready_but_live(path: str) -> None:
    door = FrontDoor(FakeService(ready=False))
    reply = await asgi(door.app, "GET", path)
    assert (reply.status, reply.error["code"]) == (503, "not_ready")
    assert reply.headers["retry-after"] == "1"
    assert (await asgi(door.app, "GET", "/v2/health/live")).status == 200


async def test_models_that_chat_are_listed_first() -> None:
    """Programs that are given no model take the first and chat with it; vLLM's want to know its ``root``."""
    listed = (await asgi(FrontDoor().app, "GET", "/v1/models")).json["data"]
    assert [(card["id"], card["root"]) for card in listed] == [(CHAT_MODEL, CHAT_MODEL), (MODEL, MODEL)]


async def test_models_whose_experts_are_spread_say_where_they_are() -> None:
    """In short, and only where they are: one process has no placement."""
    facts = ExpertFacts(layers=2, experts=2, chosen=1, parameters=9, active_parameters=5)
    spread = replace(make_card("spread"), experts=facts, ranks=2)
    service = FakeService((spread, replace(spread, id="whole", ranks=1), replace(spread, id="plain", experts=None)))
    placed = PlacedFacts(version=3, num_ranks=2, num_slots=4, moves=5, failed=0, rank_loads=(0.5, 0.5))
    service.expert_reports = (ExpertReport(placed=placed), ExpertReport(placed=replace(placed, version=1)))
    door = FrontDoor(service)
    listed = {one["id"]: one["vireo"] for one in (await asgi(door.app, "GET", "/v1/models")).json["data"]}
    assert listed["spread"]["placements"] == [{"version": version, "ranks": 2, "slots": 4} for version in (3, 1)]
    assert not any("placements" in listed[name] for name in ("whole", "plain"))


async def test_replica_that_is_stuck_leaves_its_placement_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async def stuck(_model: str) -> Sequence[ExpertReport]:
        await asyncio.Event().wait()
        raise AssertionError

    facts = ExpertFacts(layers=2, experts=2, chosen=1, parameters=9, active_parameters=5)
    monkeypatch.setattr(http, "_PLACEMENTS_S", 0.0)
    service = replace(joined(FakeService()), experts=stuck)
    shown = await http._shown(service, replace(make_card(), experts=facts, ranks=2))
    assert "placements" not in shown["vireo"]


async def test_path_of_completions_without_messages_names_that_of_chat() -> None:
    reply = await asgi(FrontDoor().app, "POST", "/v1/completions", b"{}")
    assert (reply.status, reply.error["code"]) == (404, "not_found")
    assert "/v1/chat/completions" in reply.error["message"]


async def test_sick_model_is_not_ready_and_the_others_and_the_server_are() -> None:
    door = FrontDoor(FakeService(video_cards=(make_video_card(),)))
    for sick in (MODEL, CHAT_MODEL, VIDEO_MODEL):
        door.service.sick = {sick}
        for model in (MODEL, CHAT_MODEL, VIDEO_MODEL):
            reply = await asgi(door.app, "GET", f"/v2/models/{model}/ready")
            shown = (await asgi(door.app, "GET", f"/v1/models/{model}")).json["vireo"]["ready"]
            assert (reply.status, shown) == ((503, False) if model == sick else (200, True))
        listed = (await asgi(door.app, "GET", "/v1/models")).json["data"]
        assert [card["id"] for card in listed if not card["vireo"]["ready"]] == [sick]
        assert (await asgi(door.app, "GET", "/v2/health/ready")).status == 200


async def test_readiness_of_a_model_that_is_not_served_is_not_found() -> None:
    door = FrontDoor()
    for path in ("/v2/models/nobody/ready", f"/v2/models/{CHAT_MODEL}/versions/2/ready"):
        reply = await asgi(door.app, "GET", path)
        assert (reply.status, reply.error["code"]) == (404, "model_not_found")


async def test_null_is_what_is_left_out() -> None:
    raw = length_prefixed([GOOD_PNG])
    tensor = {"name": "IMAGE", "datatype": "BYTES", "shape": [1], "data": None}
    tensor["parameters"] = {"binary_data_size": len(raw), "shared_memory_region": None}
    wanted = [{"name": "LABEL", "parameters": None}, {"name": "SCORE", "parameters": {"classification": None}}]
    parameters = {"top_k": None, "timeout": None, "binary_data_output": None, "vireo_settings.exit_1": None}
    for outputs in (None, wanted):
        for sent in (None, parameters):
            head = json.dumps({"id": None, "parameters": sent, "inputs": [tensor], "outputs": outputs}).encode()
            headers = {"inference-header-content-length": str(len(head))}
            reply = await asgi(FrontDoor().app, "POST", INFER, head + raw, headers)
            assert (reply.status, reply.json["outputs"][0]["data"]) == (200, [GOOD_LABEL])
            assert "id" not in reply.json
    tensor = {"name": "IMAGE", "datatype": "BYTES", "shape": [1], "data": [IMAGE], "parameters": None}
    assert (await FrontDoor().post_json({"inputs": [tensor]}, INFER)).status == 200


async def test_classes_come_as_text() -> None:
    tensor = {"name": "IMAGE", "datatype": "BYTES", "shape": [2], "data": [IMAGE, "!"]}
    outputs = [{"name": "SCORE", "parameters": {"classification": 2}}, {"name": "LABEL"}]
    reply = await FrontDoor().post_json({"inputs": [tensor], "outputs": outputs}, INFER)
    scores, labels = reply.json["outputs"]
    assert (scores["name"], scores["datatype"], scores["shape"]) == ("SCORE", "BYTES", [2, 2])
    best = scores["data"][0].split(":")
    assert (float(best[0]) > 0.4, f"class {best[1]}", best[2]) == (True, GOOD_LABEL, GOOD_LABEL)
    assert scores["data"][2:] == ["", ""]
    assert labels["data"] == [GOOD_LABEL, ""]


async def test_tritons_priority_and_timeout_reach_the_service() -> None:
    door = FrontDoor()
    tensor = {"name": "IMAGE", "datatype": "BYTES", "shape": [1], "data": [IMAGE]}
    await door.post_json({"inputs": [tensor], "parameters": {"priority": 1, "timeout": 5_000_000}}, INFER)
    (request,) = door.service.requests
    assert (request.budget.priority, request.budget.latency_ms) == (Priority.HIGH, None)
    assert request.deadline_s is not None


async def test_models_of_every_task_are_described_and_listed() -> None:
    door = FrontDoor(FakeService(video_cards=(make_video_card(),)))
    door.service.sick = {VIDEO_MODEL}
    for model in (CHAT_MODEL, VIDEO_MODEL):
        metadata = (await asgi(door.app, "GET", f"/v2/models/{model}")).json
        assert (metadata["name"], metadata["inputs"], metadata["outputs"]) == (model, [], [])
        assert (await asgi(door.app, "GET", f"/v2/models/{model}/config")).json["max_batch_size"] == 0
        refused = await door.post_json({"inputs": []}, f"/v2/models/{model}/infer")
        assert (refused.status, refused.error["param"]) == (400, "model")
        assert f"takes no tensors; models that do: {MODEL}" in refused.error["message"]
    for body, models in ((b"", 3), (b"{}", 3), (b'{"ready": null}', 3), (b'{"ready": true}', 2)):
        index = (await asgi(door.app, "POST", "/v2/repository/index", body)).json
        assert len(index) == models
    assert (await asgi(door.app, "POST", "/v2/repository/index", b"[]")).error["code"] == BAD
    assert (await asgi(door.app, "GET", "/v2/systemsharedmemory/region/mine/status")).json == []


async def test_cancelling_a_call_cancels_the_work_and_is_counted() -> None:
    door = FrontDoor(FakeService(gate=asyncio.Event()))
    task = asyncio.create_task(door.post_json(BODY))
    await door.service.entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (door.service.in_flight, door.service.num_cancelled) == (0, 1)
    assert door.calls.in_flight == 0
    assert door.calls.finished[0].outcome == "cancelled"


async def test_metrics_hear_of_every_call_with_bounded_labels() -> None:
    door = FrontDoor()
    await door.post_json(BODY)
    await door.post_json({"model": MODEL, "images": [IMAGE, "!"]})
    await door.post_json({"model": "x" * 200, "image": IMAGE})
    await door.post_json(b"")
    await door.post_json({"inputs": []}, "/v2/models/none/infer")
    await asgi(door.app, "POST", "/v1/classify", BODY, JSON, client=("203.0.113.7", 1))
    await asgi(door.app, "GET", "/v1/models")
    calls = [(c.surface.value, c.model, c.tenant, c.outcome) for c in door.calls.finished]
    assert calls == [
        ("http_classify", MODEL, "local", "ok"),
        ("http_classify", MODEL, "local", "partial"),
        ("http_classify", "unknown", "local", "model_not_found"),
        ("http_classify", "unknown", "local", "invalid_request"),
        ("http_oip", "unknown", "local", "model_not_found"),
        ("http_classify", "unknown", "unknown", "forbidden"),
    ]
    assert door.calls.in_flight == 0
    assert all(call.seconds >= 0 for call in door.calls.finished)


async def test_broken_metrics_endpoint_is_an_internal_error_in_the_usual_shape(capsys: Any) -> None:
    def explode(accept: str, *, names_tenants: bool) -> tuple[bytes, str]:
        raise OSError("/srv/secret")

    app = build_http_app(FakeService(), Authenticator({}, True), IngressLimits(), explode)
    reply = await asgi(app, "GET", "/metrics")
    assert (reply.status, reply.error["code"]) == (500, "internal_error")
    assert b"secret" not in reply.body
    assert "secret" in "".join(capsys.readouterr())
