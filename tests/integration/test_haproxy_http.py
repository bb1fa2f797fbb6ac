"""HAProxy's HTTP front end as the wrapper leaves it, before a gateway that answers as its path says."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress

import httpx
import pytest

from serving.config import from_mapping, resolve
from serving.system import haproxy
from serving.system.haproxy_http import METHODS
from tests.support.ports import free_port
from tests.support.system import short_folder
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(120)

PLACES = 3
ORIGIN = "https://app.example.com"
RAYS_CONFIG = """global
    maxconn 100
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 4s
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


holding: list[socket.socket] = []
"""Connections of requests that the gateway holds."""


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
        path = head.split(b" ")[1].decode()
        if path == "/hold/sync":
            end = "hold"
        if end == "silent":
            connection.recv(1)
        elif end == "hold":
            holding.append(connection)
            connection.recv(1)  # nothing comes: until the test ends it
        elif end.startswith("places-"):
            told = f"x-vireo-places: {end.removeprefix('places-')}"
            connection.sendall(f"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n{told}\r\n\r\n".encode())
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
        limits = {"limits": {"body_timeout_s": 0.2}, "gateway": {"max_in_flight": PLACES}}
        settings = {**limits, "http": {"cors_origins": [ORIGIN, "http://localhost:3000"]}}
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


@contextmanager
def held(http: httpx.Client, number: int, path: str = "/v1/hold", **headers: str) -> Iterator[None]:
    """So many requests of a caller at the gateway at a time."""
    with ThreadPoolExecutor(number) as pool:
        waiting = [pool.submit(http.post, path, headers=headers, content=b"x") for _ in range(number)]
        wait_until(lambda: len(holding) == number, "the gateway has them", 20)
        yield
        for connection in holding:
            connection.shutdown(socket.SHUT_RDWR)
        for each in waiting:
            each.result()
        holding.clear()


def is_refused(http: httpx.Client, path: str, **headers: str) -> bool:
    """Send work; say whether HAProxy refused it."""
    reply = http.post(path, headers=headers, content=b"x")
    assert "x-vireo-places" not in reply.headers
    if reply.status_code != 429:
        return False
    assert reply.headers["retry-after"] == "1"
    assert reply.headers["x-request-id"]
    error = reply.json()
    assert (error if path.startswith("/v2") else error["error"])["code"] == "queue_full"
    return True


@pytest.mark.parametrize("header", [("authorization", "Bearer {}"), ("x-api-key", "{}")])
def test_caller_has_as_many_requests_at_a_time_as_there_are_places_and_nobody_else_is_refused(
    header: tuple[str, str], http: httpx.Client
) -> None:
    name, form = header
    mine = {name: form.format(f"mine by {name}".replace(" ", "-"))}
    with held(http, PLACES, **mine):
        assert is_refused(http, "/v1/x", **mine)
        assert is_refused(http, "/v2/x", **mine)
        assert not is_refused(http, "/v1/x", **{name: form.format("another")})
        assert http.get("/v1/x", headers=mine).status_code == 200, "only work is counted"
    wait_until(lambda: not is_refused(http, "/v1/x", **mine), "its places are free again", 20)


def test_caller_has_as_many_as_the_last_answer_said(http: httpx.Client) -> None:
    mine = {"x-api-key": "told"}
    assert not is_refused(http, "/v1/places-1", **mine)
    with held(http, 1, **mine):
        assert is_refused(http, "/v1/places-2", **mine)
    wait_until(lambda: not is_refused(http, "/v1/places-2", **mine), "its place is free again", 20)
    with held(http, 1, **mine):
        assert not is_refused(http, "/v1/x", **mine)


def test_who_waits_for_a_job_holds_no_place(http: httpx.Client) -> None:
    mine = {"x-api-key": "waiting"}
    with held(http, PLACES, **mine):
        assert not is_refused(http, "/v1/videos/sync", **mine)
    with held(http, PLACES, path="/hold/sync", **mine):
        assert not is_refused(http, "/v1/x", **mine)


def test_what_an_answer_said_does_not_hold_for_good(http: httpx.Client) -> None:
    """Else a caller of long requests would be refused by what was so before they began, until one of them ends."""
    mine = {"x-api-key": "stale"}
    assert not is_refused(http, "/v1/places-1", **mine)
    with held(http, 1, **mine):
        assert is_refused(http, "/v1/x", **mine)
        wait_until(lambda: not is_refused(http, "/v1/x", **mine), "the answer is too old to count", 20)


def test_one_key_is_one_caller_however_it_is_sent(http: httpx.Client) -> None:
    forms = [{"authorization": "Bearer same"}, {"authorization": "bearer same"}, {"x-api-key": "same"}]
    with held(http, PLACES, **forms[0]):
        assert [is_refused(http, "/v1/x", **form) for form in forms] == [True] * 3


def test_callers_without_a_key_are_one_caller(http: httpx.Client) -> None:
    with held(http, PLACES):
        assert is_refused(http, "/v1/x")
