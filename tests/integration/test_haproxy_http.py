"""HAProxy's HTTP front end as the wrapper leaves it, before a gateway that answers as its path says."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, suppress

import httpx
import pytest

from serving.config import from_mapping, resolve
from serving.errors import QueueFull
from serving.front.status import http_error
from serving.system import haproxy, haproxy_callers
from serving.system.haproxy_http import METHODS
from tests.support.ports import free_port
from tests.support.system import short_folder
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(120)

ORIGIN = "https://app.example.com"
RAYS_CONFIG = """global
    maxconn 100
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 1s
    retries 1
    errorfile 503 /no/such/file
frontend http_frontend
    bind 127.0.0.1:{port}
    acl healthcheck path -i /-/healthz
    http-request return status 503 content-type text/plain string "Service Unavailable" if healthcheck
    http-request return status 200 content-type application/json string "{{}}" if {{ path -i /-/routes }}
    use_backend http-dead if {{ path_end /dead }}
    use_backend http-gateways if {{ path_beg / }}
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path \\'%[path]\\' not found."
backend http-gateways
    server gateway 127.0.0.1:{backend}
backend http-dead
    server nobody 127.0.0.1:{dead}
"""
TEXTS = {
    "400": b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\n",
    "404": b"HTTP/1.1 404 Not Found\r\ncontent-type: text/plain; charset=utf-8\r\n",
    "500": b"HTTP/1.1 500 Internal Server Error\r\ncontent-type: text/plain; charset=utf-8\r\n",
}


def gateway(listener: socket.socket) -> None:
    """Answers each connection once: with a text that is not ours, with nothing, never, or with what it has got."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_answer, args=(connection,), daemon=True).start()


def _answer(connection: socket.socket) -> None:
    with connection, suppress(ConnectionError):
        head = b""
        while b"\r\n\r\n" not in head:
            if not (data := connection.recv(65536)):
                return
            head += data
        end = head.split(b" ")[1].rsplit(b"/", 1)[-1].decode()
        if end == "silent":
            connection.recv(1)
        elif end == "full":
            _, headers, body = http_error(QueueFull("of the gateway", retry_after_s=1.0, meets_all=True))
            lines = [b"HTTP/1.1 429 Too Many Requests", b"content-type: application/json", b"connection: close"]
            lines += [b"content-length: %d" % len(body), *(b"%b: %b" % header for header in headers)]
            connection.sendall(b"\r\n".join([*lines, b"", body]))
        elif end in TEXTS:
            connection.sendall(TEXTS[end] + b"content-length: 5\r\nconnection: close\r\n\r\nwords")
        elif end != "gone":
            size = f"content-type: message/http\r\ncontent-length: {len(head)}".encode()
            connection.sendall(b"HTTP/1.1 200 OK\r\nconnection: close\r\n" + size + b"\r\n\r\n" + head)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    front, dead = free_port(), free_port()
    with closing(socket.create_server(("127.0.0.1", 0))) as listener, short_folder() as folder:
        threading.Thread(target=gateway, args=(listener,), daemon=True).start()
        settings = {"limits": {"body_timeout_s": 0.2}, "http": {"cors_origins": [ORIGIN, "http://localhost:3000"]}}
        script = haproxy.write_wrapper(resolve(from_mapping({"run_dir": str(folder), **settings})), folder)
        path = folder / "haproxy.cfg"
        path.write_text(RAYS_CONFIG.format(port=front, backend=listener.getsockname()[1], dead=dead))
        process = subprocess.Popen([script, "-db", "-f", path])
        try:
            wait_until(lambda: listens(front), "HAProxy listens", 20)
            yield front
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def http(port: int) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
        yield client


def raw(port: int, *lines: str, until: bytes = b"\0") -> bytes:
    """Send a head; return the answer up to its end, or to where ``until`` has come."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall("\r\n".join([*lines, "connection: close", "", ""]).encode("latin-1"))
        connection.settimeout(20)
        got = b""
        while until not in got and (data := connection.recv(65536)):
            got += data
        return got


WRONG = {
    "/dead": (503, "not_ready"),
    "/gone": (502, "not_ready"),
    "/silent": (504, "not_ready"),
    "/400": (400, "invalid_request"),
    "/404": (503, "not_ready"),
    "/500": (500, "internal_error"),
    "/-/routes": (404, "not_found"),
    "/%2D/routes": (404, "not_found"),
    "/-/healthz": (503, "not_ready"),
}


@pytest.mark.parametrize("path", WRONG)
def test_answer_that_is_no_gateways_has_the_shape_of_every_error(path: str, http: httpx.Client) -> None:
    status, code = WRONG[path]
    reply = http.get(path, headers={"x-request-id": "mine"})
    assert reply.status_code == status
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers.get_list("x-request-id") == ["mine"]
    error = reply.json()["error"]
    assert set(error) == {"code", "message", "type", "param"}
    assert error["code"] == code
    assert len(error["message"]) > 15
    assert ("retry-after" in reply.headers) is (code == "not_ready")


@pytest.mark.parametrize("path", ["/dead", "/gone", "/silent", "/400", "/500"])
def test_below_v2_it_has_the_shape_of_the_open_inference_protocol(path: str, http: httpx.Client) -> None:
    document = http.get(f"/v2{path}").json()
    assert set(document) == {"error", "code", "type", "param"}
    assert document["code"] == WRONG[path][1]


@pytest.mark.parametrize("path", ["/v1/classify", "/v2/models/x/infer"])
def test_late_body_is_refused_in_the_shape_of_its_path(path: str, port: int) -> None:
    head, _, body = raw(port, f"POST {path} HTTP/1.1", "host: x", "content-length: 5").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"x-request-id: " in head
    document = json.loads(body)
    assert (document if path.startswith("/v2") else document["error"])["code"] == "request_timeout"


@pytest.mark.parametrize("sent", [[], ["a b"], ["a,b"], ["a" * 129], ["\xe9"], ["a", "b"]])
def test_request_id_that_is_none_is_replaced_by_one_that_all_see(sent: list[str], port: int) -> None:
    head, _, seen = raw(port, "GET /x HTTP/1.1", "host: x", *[f"x-request-id: {one}" for one in sent]).partition(
        b"\r\n\r\n"
    )
    (told,) = re.findall(rb"x-request-id: ([A-Za-z0-9._-]{1,128})\r", head + b"\r")
    assert re.findall(rb"x-request-id: (.*)\r", seen) == [told]
    assert told.decode() not in sent


def test_request_that_asks_for_leave_is_passed_on_before_its_body(port: int) -> None:
    expected = b"expect: 100-continue"
    answer = raw(port, "POST /x HTTP/1.1", "host: x", "content-length: 5", expected.decode(), until=expected)
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_upgrade_is_not_offered(port: int) -> None:
    socket_headers = ["sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==", "sec-websocket-version: 13"]
    head, _, seen = raw(port, "GET /x HTTP/1.1", "host: x", "upgrade: websocket", *socket_headers).partition(
        b"\r\n\r\n"
    )
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"upgrade" not in seen


@pytest.mark.parametrize("line", ["CONNECT a:1 HTTP/1.1", "BREW /x HTTP/1.1"])
def test_method_that_no_server_knows_is_not_implemented(line: str, port: int) -> None:
    head, _, body = raw(port, line, "host: a:1").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 501 ")
    assert json.loads(body)["error"]["code"] == "method_not_allowed"


def test_options_of_the_server_are_told(port: int) -> None:
    answer = raw(port, "OPTIONS * HTTP/1.1", "host: x")
    assert answer.startswith(b"HTTP/1.1 204 ")
    assert f"allow: {', '.join(METHODS)}".encode() in answer


def test_preflight_of_an_allowed_origin_is_answered(http: httpx.Client) -> None:
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,x-stainless-os"}
    reply = http.options("/v1/chat/completions", headers={"origin": ORIGIN, **asked})
    assert reply.status_code == 204
    assert reply.headers["access-control-allow-origin"] == ORIGIN
    assert "POST" in reply.headers["access-control-allow-methods"].split(", ")
    assert reply.headers["access-control-allow-headers"] == "authorization,x-stainless-os"
    assert "access-control-allow-credentials" not in reply.headers
    assert "origin" in reply.headers["vary"]


@pytest.mark.parametrize("path", ["/x", "/dead", "/500"])
def test_every_answer_to_an_allowed_origin_may_be_read(path: str, http: httpx.Client) -> None:
    reply = http.get(path, headers={"origin": ORIGIN})
    assert reply.headers["access-control-allow-origin"] == ORIGIN
    assert {"x-request-id", "retry-after"} <= set(reply.headers["access-control-expose-headers"].split(", "))


@pytest.mark.parametrize("origin", ["https://evil.example", "https://app.example.com.evil.example", "null"])
def test_other_origins_are_told_nothing(origin: str, http: httpx.Client) -> None:
    asked = {"origin": origin, "access-control-request-method": "POST"}
    for reply in (http.options("/x", headers=asked), http.get("/x", headers=asked)):
        assert not [name for name in reply.headers if name.startswith("access-control-")]
        assert reply.headers["vary"] == "origin"


def refused_by(http: httpx.Client, path: str, **headers: str) -> str:
    """Send work; say who refused it: the gateway, or HAProxy by itself."""
    reply = http.post(path, headers=headers, content=b"x")
    assert reply.status_code == 429
    assert reply.headers["retry-after"] == "1"
    assert "x-vireo-refused" not in reply.headers
    assert reply.headers["x-request-id"]
    error = reply.json()
    error = error["error"] if isinstance(error["error"], dict) else {**error, "message": error["error"]}
    assert error["code"] == "queue_full"
    return "gateway" if error["message"] == "of the gateway" else "haproxy"


@pytest.mark.parametrize("path", ["/v1/full", "/v2/full"])
@pytest.mark.parametrize("header", [("authorization", "Bearer {}"), ("x-api-key", "{}")])
def test_caller_that_heeds_no_refusal_gets_it_from_haproxy_and_nobody_else_does(
    path: str, header: tuple[str, str], http: httpx.Client
) -> None:
    name, form = header
    mine = {name: form.format(f"{path}-{name}")}
    by = [refused_by(http, path, **mine) for _ in range(haproxy_callers.NUM_REFUSALS + 4)]
    assert by[: haproxy_callers.NUM_REFUSALS] == ["gateway"] * haproxy_callers.NUM_REFUSALS
    assert by[-1] == "haproxy"
    assert refused_by(http, path, **{name: form.format("another")}) == "gateway"
    assert http.get("/v1/budget", headers=mine).status_code == 200, "only work is refused"
    wait_until(lambda: refused_by(http, path, **mine) == "gateway", "HAProxy lets the caller try again", 20)


def test_one_key_is_one_caller_however_it_is_sent(http: httpx.Client) -> None:
    forms = [{"authorization": "Bearer same"}, {"authorization": "bearer  same"}, {"x-api-key": "same"}]
    for _ in range(haproxy_callers.NUM_REFUSALS + 1):
        refused_by(http, "/v1/full", **forms[0])
    assert [refused_by(http, "/v1/full", **form) for form in forms] == ["haproxy"] * 3


def test_callers_without_a_key_are_one_caller(http: httpx.Client) -> None:
    by = [refused_by(http, "/v1/full") for _ in range(haproxy_callers.NUM_REFUSALS + 4)]
    assert by[-1] == "haproxy"
