"""Real bad requests over real transports: a typed error each, neighbours served, and a healthy system afterwards.

The full tables are in tests/unit/serving/front and tasks; here it is the sockets, HAProxy and Ray Serve that are tried.
"""

from __future__ import annotations

import json
import math
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import grpc
import numpy as np
import pytest
from PIL import Image
from vireo_pb.oip import open_inference_pb2 as oip
from vireo_pb.vireo.v1 import vireo_pb2

from tests.e2e.conftest import KEYS, Picture
from tests.e2e.surfaces import SURFACES, UNARY, Answer, Door, grpc_failure, http_failure
from tests.support import image_cases
from tests.support.clients import Ask
from tests.support.media_files import bad_files, encode, exif_orientation, gradient, grey16_png
from tests.support.system import MODEL, System
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

BAD = bad_files()
UNUSUAL = {
    "cmyk": encode(Image.fromarray(gradient(40, 50)).convert("CMYK"), "JPEG"),
    "exif_rotated": encode(gradient(40, 50), "JPEG", exif=exif_orientation(6)),
    "alpha": encode(Image.fromarray(gradient(40, 50)).convert("RGBA")),
    "palette": encode(Image.fromarray(gradient(40, 50)).convert("P")),
    "grey16": grey16_png(np.full((8, 9), 40_000, np.uint16)),
    "webp": encode(gradient(40, 50), "WEBP"),
}
NUMBERS = {"nan": math.nan, "infinite": math.inf, "minus_infinite": -math.inf, "negative": -1.0, "huge": 1e300}


@pytest.fixture(autouse=True)
def _still_healthy(system: System, door: Door, digits: list[Picture]) -> Iterator[None]:
    """After every test: ready, answering, nothing in flight."""
    yield
    assert SURFACES["http_json"](door, Ask([digits[9][0]], model=MODEL)).codes == ("9",)
    assert SURFACES["grpc_oip"](door, Ask([digits[8][0]], model=MODEL)).codes == ("8",)
    wait_until(lambda: system.in_flight() == 0, "in-flight gauge back to 0")
    assert system.is_ready()


@pytest.mark.parametrize("name", sorted(SURFACES))
def test_bad_files_fail_alone_and_their_neighbours_are_answered(name: str, door: Door, digits: list[Picture]) -> None:
    images = [digits[1][0], *(data for data, _ in BAD.values()), digits[2][0]]
    answer = SURFACES[name](door, Ask(images, model=MODEL))
    assert answer.error is None, answer
    assert answer.codes == ("1", *(code for _, code in BAD.values()), "2")


@pytest.mark.parametrize("name", sorted(SURFACES))
def test_call_of_one_bad_file_fails_as_a_whole(name: str, door: Door) -> None:
    for data, code in BAD.values():
        answer = SURFACES[name](door, Ask([data], model=MODEL))
        assert answer.error == code
        assert answer.status not in (200, grpc.StatusCode.OK)
        assert len(answer.message) > 15


@pytest.mark.parametrize("name", sorted(SURFACES))
def test_unusual_files_are_served(name: str, door: Door) -> None:
    answer = SURFACES[name](door, Ask(list(UNUSUAL.values()), model=MODEL))
    assert [item.error for item in answer.items] == [None] * len(UNUSUAL)


@pytest.mark.parametrize("name", sorted(SURFACES))
def test_files_of_real_software_are_answered_rightly(name: str, door: Door) -> None:
    answers = image_cases.DIGITS | dict.fromkeys(image_cases.REFUSED, "invalid_image")
    answer = SURFACES[name](door, Ask([image_cases.load(file) for file in answers], model=MODEL))
    assert dict(zip(answers, answer.codes, strict=True)) == answers


@pytest.mark.parametrize("name", sorted(SURFACES))
@pytest.mark.parametrize("field", ["latency_ms", "energy_j", "quality_floor"])
def test_budget_that_is_no_sensible_number_is_refused(field: str, name: str, door: Door, digits: list[Picture]) -> None:
    for number in NUMBERS.values():
        answer = SURFACES[name](door, replace(Ask([digits[0][0]], model=MODEL), **{field: number}))
        assert answer.error == "invalid_request", number
        assert field in answer.message or "JSON" in answer.message


@pytest.mark.parametrize("name", sorted(SURFACES))
def test_call_that_is_wrong_as_a_whole_is_refused_by_name(name: str, door: Door, digits: list[Picture]) -> None:
    data = digits[0][0]
    for ask, code in (
        (Ask([data], model="no-such-model"), "model_not_found"),
        (Ask([data] * 100, model=MODEL), "too_many_images"),
        (Ask([], model=MODEL), "invalid_request"),
        (Ask([data], model=MODEL, top_k=100_000), "invalid_request"),
    ):
        answer = SURFACES[name](door, ask)
        assert answer.error == code, ask.model
        assert answer.message


GOOD_BODY = {"model": MODEL, "image": "iVBORw0KGgo="}
HTTP_BODIES: dict[str, tuple[bytes, str, str]] = {
    "empty": (b"", "application/json", "invalid_request"),
    "no_json": (b"{", "application/json", "invalid_request"),
    "no_utf8": (b'{"model": "\xff"}', "application/json", "invalid_request"),
    "nested": (b"[" * 100_000, "application/json", "invalid_request"),
    "list": (b"[]", "application/json", "invalid_request"),
    "unknown_field": (json.dumps(GOOD_BODY | {"temperature": 1}).encode(), "application/json", "unknown_field"),
    "unknown_budget": (json.dumps(GOOD_BODY | {"vireo": {"joules": 1}}).encode(), "application/json", "unknown_field"),
    "both_images": (json.dumps(GOOD_BODY | {"images": []}).encode(), "application/json", "invalid_request"),
    "top_k_text": (json.dumps(GOOD_BODY | {"top_k": "3"}).encode(), "application/json", "invalid_request"),
    "top_k_zero": (json.dumps(GOOD_BODY | {"top_k": 0}).encode(), "application/json", "invalid_request"),
    "priority": (json.dumps(GOOD_BODY | {"vireo": {"priority": 1}}).encode(), "application/json", "invalid_request"),
    "broken_base64": (json.dumps(GOOD_BODY | {"image": "a?b"}).encode(), "application/json", "invalid_image"),
    "url": (json.dumps(GOOD_BODY | {"image": "http://x/y.png"}).encode(), "application/json", "invalid_image"),
    "no_type": (b"{}", "", "unsupported_media_type"),
    "xml": (b"<a/>", "text/xml", "unsupported_media_type"),
    "no_boundary": (b"--x--", "multipart/form-data", "unsupported_media_type"),
    "no_parts": (b"--x--\r\n", "multipart/form-data; boundary=x", "invalid_request"),
    "cut_form": (b'--x\r\ncontent-disposition: form-data; name="file"\r\n\r\nab', "multipart/form-data; boundary=x",
                 "invalid_request"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(HTTP_BODIES))
def test_bad_http_body_is_refused(name: str, door: Door) -> None:
    body, content_type, code = HTTP_BODIES[name]
    headers = {"content-type": content_type} if content_type else {}
    answer = http_failure(door.http.post("/v1/classify", content=body, headers=headers))
    assert answer.error == code
    assert 400 <= answer.status < 500
    assert len(answer.message) > 15


def test_compressed_body_is_refused(door: Door) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    answer = http_failure(door.http.post("/v1/classify", content=b"\x1f\x8b", headers=headers))
    assert answer.error == "unsupported_media_type"


TENSORS: dict[str, tuple[str, str, list[int], bytes]] = {
    "wrong_datatype": ("PIXELS", "FP64", [1, 32, 32, 3], bytes(8 * 3072)),
    "wrong_shape": ("PIXELS", "UINT8", [1, 32, 32], bytes(1024)),
    "negative_shape": ("PIXELS", "UINT8", [-1, 32, 32, 3], bytes(3072)),
    "huge_shape": ("PIXELS", "UINT8", [2**40, 2**20, 2**20, 3], bytes(3072)),
    "too_few_bytes": ("PIXELS", "UINT8", [1, 32, 32, 3], bytes(3071)),
    "nan_pixels": ("PIXELS", "FP32", [1, 32, 32, 3], np.full(3072, np.nan, np.float32).tobytes()),
    "unknown_name": ("PICTURE", "BYTES", [1], struct.pack("<I", 1) + b"x"),
    "cut_bytes": ("IMAGE", "BYTES", [1], struct.pack("<I", 100) + b"x"),
}


@pytest.mark.parametrize("name", sorted(TENSORS))
def test_bad_tensor_is_refused_over_http_and_grpc_alike(name: str, door: Door) -> None:
    tensor, datatype, shape, raw = TENSORS[name]
    head = {"name": tensor, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(raw)}}
    text = json.dumps({"inputs": [head]}).encode()
    over_http = http_failure(
        door.http.post(
            f"/v2/models/{MODEL}/infer",
            content=text + raw,
            headers={"inference-header-content-length": str(len(text))},
        )
    )
    assert 400 <= over_http.status < 500
    message = oip.ModelInferRequest(
        model_name=MODEL,
        inputs=[oip.ModelInferRequest.InferInputTensor(name=tensor, datatype=datatype, shape=shape)],
        raw_input_contents=[raw],
    )
    over_grpc = grpc_refusal(lambda: door.oip.ModelInfer(message, timeout=30))
    assert over_grpc.status == grpc.StatusCode.INVALID_ARGUMENT
    assert over_grpc.error == over_http.error
    assert over_grpc.message == over_http.message


def grpc_refusal(call: Callable[[], object]) -> Answer:
    with pytest.raises(grpc.RpcError) as failure:
        call()
    return grpc_failure(failure.value)


def test_unknown_field_of_a_grpc_message_is_refused(door: Door, digits: list[Picture]) -> None:
    message = vireo_pb2.ClassifyRequest(model=MODEL, images=[digits[0][0]])
    raw = message.SerializeToString() + b"\x98\x06\x01"  # field 99, varint
    call = door.channel.unary_unary("/vireo.v1.Vireo/Classify")
    assert grpc_refusal(lambda: call(raw, timeout=30)).error == "unknown_field"


def test_bytes_that_are_no_message_are_refused(door: Door) -> None:
    call = door.channel.unary_unary("/vireo.v1.Vireo/Classify")
    refusal = grpc_refusal(lambda: call(b"\xff\xff\xff\xff", timeout=30))
    assert (refusal.status, refusal.error) == (grpc.StatusCode.INVALID_ARGUMENT, "invalid_request")
    assert "no valid" in refusal.message


# Over the limits: on the system whose limits are small.


@pytest.mark.parametrize("name", sorted(UNARY))
def test_request_over_the_byte_limit_is_refused(name: str, alpha: Door, digits: list[Picture]) -> None:
    answer = UNARY[name](alpha, Ask([bytes(1 << 21)], model=MODEL))
    assert answer.status in (413, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT)
    assert "1048576" in answer.message
    assert UNARY[name](alpha, Ask([digits[0][0]], model=MODEL)).codes == ("0",)


def test_body_of_unknown_length_is_cut_off_at_the_limit(alpha: Door) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(32):
            yield bytes(1 << 16)

    answer = http_failure(
        alpha.http.post("/v1/classify", content=chunks(), headers={"content-type": "application/json"})
    )
    assert (answer.status, answer.error) == (413, "payload_too_large")


@contextmanager
def raw_http(door: Door, *lines: str) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", door.system.port), timeout=20) as connection:
        head = ["POST /v1/classify HTTP/1.1", "host: x", f"authorization: Bearer {KEYS['alpha']}", *lines, "", ""]
        connection.sendall("\r\n".join(head).encode())
        yield connection


def test_body_that_drips_is_cut_off(strict: System, alpha: Door, digits: list[Picture]) -> None:
    with raw_http(alpha, "content-type: application/json", "content-length: 1000") as connection:
        connection.sendall(b'{"model"')
        assert b" 408 " in connection.recv(65536).split(b"\r\n")[0]
    wait_until(lambda: strict.in_flight() == 0, "in-flight gauge back to 0")
    assert SURFACES["http_json"](alpha, Ask([digits[0][0]], model=MODEL)).codes == ("0",)


def test_body_shorter_than_its_content_length_frees_its_slot(strict: System, alpha: Door) -> None:
    with raw_http(alpha, "content-type: application/json", "content-length: 1000") as connection:
        connection.sendall(b'{"model"')
        connection.shutdown(socket.SHUT_WR)
    wait_until(lambda: strict.in_flight() == 0, "in-flight gauge back to 0")


@pytest.mark.parametrize("length", ["-1", "1e3", "99999999999999999999", "10, 20"])
def test_content_length_that_is_no_length_is_refused(length: str, alpha: Door) -> None:
    with raw_http(alpha, "content-type: application/json", f"content-length: {length}") as connection:
        status = connection.recv(65536).split(b"\r\n")[0]
    assert b" 400 " in status or b" 413 " in status


# What the servers around the gateway would answer by themselves, or take for orders to themselves.

ORDERS_TO_RAY = [
    "x-session-id",
    "serve_multiplexed_model_id",
    "x-request-timeout-seconds",
    "x-request-disconnect-disabled",
]


def test_odd_header_of_rays_is_nothing_to_us(door: Door) -> None:
    lines = [f"{name}: \xe9" for name in (*ORDERS_TO_RAY, "x-request-id")]
    head, body = raw_answer(door, "GET /healthz HTTP/1.1", *lines)
    assert head.startswith("HTTP/1.1 200 ")
    assert json.loads(body) == {"ready": True}


ELSEWHERE = {
    "rays_routes": ("GET /-/routes HTTP/1.1", 404, "not_found"),
    "unknown_method": ("BREW /v1/models HTTP/1.1", 501, "method_not_allowed"),
    "tunnel": ("CONNECT x:1 HTTP/1.1", 501, "method_not_allowed"),
    "path": ("GET //healthz HTTP/1.1", 404, "not_found"),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_answer_of_the_servers_around_us_has_our_shape(name: str, door: Door) -> None:
    line, status, code = ELSEWHERE[name]
    head, body = raw_answer(door, line, "x-request-id: mine", host="x:1" if name == "tunnel" else "x")
    assert head.startswith(f"HTTP/1.1 {status} ")
    assert "\r\nx-request-id: mine" in head
    assert json.loads(body)["error"]["code"] == code


@pytest.mark.parametrize(
    ("line", "code"),
    [("authorization: Bearer x", "invalid_api_key"), ("x-api-key: x", "invalid_api_key"),
     ("content-type: application/json", "invalid_request"), ("idempotency-key: x", "invalid_request"),
     ("x-vireo-energy-j: 1", "invalid_request")],
)  # fmt: skip
def test_header_that_has_one_value_is_refused_if_it_comes_twice(line: str, code: str, door: Door) -> None:
    head, body = raw_answer(door, "POST /v1/classify HTTP/1.1", line, line, "content-length: 0")
    assert head.startswith(("HTTP/1.1 400 ", "HTTP/1.1 401 "))
    error = json.loads(body)["error"]
    assert (error["code"], error["param"]) == (code, line.partition(":")[0])
    assert "more than once" in error["message"]


@pytest.mark.parametrize("name", ["authorization", "x-api-key"])
def test_two_keys_are_refused_over_grpc_too(name: str, door: Door) -> None:
    metadata = [(name, "Bearer x"), (name, "Bearer x")]
    refusal = grpc_refusal(lambda: door.oip.ServerMetadata(oip.ServerMetadataRequest(), timeout=30, metadata=metadata))
    assert (refusal.status, refusal.error) == (grpc.StatusCode.UNAUTHENTICATED, "invalid_api_key")
    assert "more than once" in refusal.message


def test_another_application_is_still_this_one(door: Door) -> None:
    metadata = [("application", "another"), ("request_id", "rays own"), ("x-request-id", "mine")]
    _reply, call = door.oip.ServerLive.with_call(oip.ServerLiveRequest(), timeout=30, metadata=metadata)
    trailers = dict(call.trailing_metadata())
    assert (trailers["request_id"], trailers["x-request-id"]) == ("mine", "mine")


def test_unknown_method_has_the_shape_of_every_error(door: Door) -> None:
    call = door.channel.unary_unary("/inference.GRPCInferenceService/Nothing")
    refusal = grpc_refusal(lambda: call(b"", timeout=30))
    assert (refusal.status, refusal.error) == (grpc.StatusCode.UNIMPLEMENTED, "not_found")
    assert refusal.extra["x-request-id"]


def test_leave_to_send_a_body_is_given_only_where_it_will_be_read(door: Door) -> None:
    ask = ("content-type: application/json", "content-length: 2000000", "expect: 100-continue")
    for lines, status in (
        (("POST /v1/nothing HTTP/1.1", *ask), 404),
        (("POST /v1/classify HTTP/1.1", *ask, "x-api-key: a", "x-api-key: b"), 401),
        (("POST /v1/classify HTTP/1.1", "content-type: text/plain", *ask[1:]), 415),
        (("POST /v1/classify HTTP/1.1", ask[0], "content-length: 999999999", ask[2]), 413),
        (("POST /v1/classify HTTP/1.1", *ask), 100),
    ):
        head, _body = raw_answer(door, *lines, until=b"\r\n\r\n")
        assert head.startswith(f"HTTP/1.1 {status} "), lines


def raw_answer(door: Door, line: str, *lines: str, host: str = "localhost", until: bytes = b"\0") -> tuple[str, str]:
    """Head and body of the answer to a request that is written out; or what came up to ``until``."""
    with socket.create_connection(("127.0.0.1", door.system.port), timeout=20) as connection:
        connection.sendall("\r\n".join([line, f"host: {host}", *lines, "connection: close", "", ""]).encode("latin-1"))
        got = b""
        while until not in got and (data := connection.recv(65536)):
            got += data
    head, _, body = got.decode("latin-1").partition("\r\n\r\n")
    return head, body
