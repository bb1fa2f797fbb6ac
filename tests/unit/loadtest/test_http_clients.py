"""The HTTP clients against a scripted server: what they send, and how each kind of answer ends."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from loadtest.clients.base import Budget, Client, Prepared, Reply, TargetError
from loadtest.clients.http_base import HttpClient
from loadtest.clients.http_classify import HttpClassifyClient
from loadtest.clients.http_oip import HttpOipClient
from loadtest.clients.routing import SurfaceRouter
from loadtest.records import Outcome
from tests.unit.loadtest.builders import make_payload

OK_BODY = {
    "results": [{"index": 0, "label": "7", "score": 1.0, "exit": 1, "top_k": []}],
    "vireo": {"operating_point": "p", "energy_j": 0.5, "cache": "hit"},
}


@dataclass
class Scripted:
    """Answers every request with the same bytes and keeps what was asked."""

    answer: bytes = b""
    heads: list[str] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    url: str = ""

    def answers(self, status: int, body: Any, *headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = [f"HTTP/1.1 {status} X", f"content-length: {len(data)}", *headers]
        self.answer = "\r\n".join(head).encode() + b"\r\n\r\n" + data

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
                self.heads.append(head.decode())
                self.bodies.append(json.loads(await reader.readexactly(length)))
                writer.write(self.answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def scripted() -> AsyncIterator[Scripted]:
    script = Scripted()
    server = await asyncio.start_server(script.handle, "127.0.0.1", 0)
    script.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield script
    finally:
        server.close()
        await server.wait_closed()


async def call(client: HttpClient, **payload: Any) -> Reply:
    try:
        await client.start()
        return await client.send(client.prepare(make_payload(**payload)))
    finally:
        await client.close()


async def test_a_classify_request_is_what_the_api_says() -> None:
    async with scripted() as script:
        script.answers(200, OK_BODY)
        client = HttpClassifyClient(script.url, api_keys={"a": "KEY"})
        budget = Budget(latency_ms=50.0, priority="high")
        reply = await call(client, model="m", tenant="a", top_k=3, budget=budget)
    assert script.heads[0].startswith("POST /v1/classify HTTP/1.1\r\n")
    assert "authorization: Bearer KEY\r\n" in script.heads[0]
    assert "content-type: application/json\r\n" in script.heads[0]
    image = base64.b64encode(b"abc").decode()
    vireo = {"latency_ms": 50.0, "priority": "high"}
    assert script.bodies == [{"model": "m", "images": [image], "top_k": 3, "vireo": vireo}]
    assert (reply.outcome, reply.status, reply.labels, reply.exits) == (Outcome.OK, "200", ("7",), (1,))
    assert reply.server is not None
    assert (reply.server.energy_j, reply.server.cache, reply.server.compute_ms) == (0.5, "hit", None)


async def test_a_tenant_without_a_key_sends_none_and_a_request_without_a_budget_sends_none() -> None:
    async with scripted() as script:
        script.answers(200, OK_BODY)
        await call(HttpClassifyClient(script.url, api_keys={"a": "KEY"}), tenant="b")
    assert "authorization" not in script.heads[0]
    assert "vireo" not in script.bodies[0]


@pytest.mark.parametrize(
    ("status", "body", "outcome", "code"),
    [
        (400, {"error": {"code": "invalid_image", "message": "m"}}, Outcome.CLIENT_ERROR, "invalid_image"),
        (429, {"error": {"code": "queue_full", "message": "m"}}, Outcome.REJECTED, "queue_full"),
        (503, {"error": {"code": "draining", "type": "rate_limit_error"}}, Outcome.REJECTED, "draining"),
        (503, b"<html>no server</html>", Outcome.UNAVAILABLE, None),
        (200, b"not json", Outcome.PROTOCOL_ERROR, None),
        (200, b"\xff\xfe", Outcome.PROTOCOL_ERROR, None),
        (200, {"results": []}, Outcome.PROTOCOL_ERROR, None),
        (500, b"", Outcome.SERVER_ERROR, None),
    ],
)
async def test_every_answer_ends_in_an_outcome(status: int, body: Any, outcome: Outcome, code: str | None) -> None:
    async with scripted() as script:
        script.answers(status, body, "retry-after: 3")
        reply = await call(HttpClassifyClient(script.url))
    assert (reply.outcome, reply.status, reply.error_code) == (outcome, str(status), code)
    assert status == 200 or reply.retry_after_s == 3.0


async def test_bytes_that_are_no_http_are_a_protocol_error_and_a_closed_door_is_a_connection_error() -> None:
    async with scripted() as script:
        script.answer = b"SSH-2.0\r\n\r\n"
        assert (await call(HttpClassifyClient(script.url))).outcome is Outcome.PROTOCOL_ERROR
        client = HttpClassifyClient(script.url)
        await client.start()
        await client.close()
    assert (await client.send(client.prepare(make_payload()))).outcome is Outcome.CONNECTION_ERROR


async def test_starting_against_nobody_is_a_target_error(unused_tcp_port: int) -> None:
    with pytest.raises(TargetError, match=str(unused_tcp_port)):
        await HttpClassifyClient(f"http://127.0.0.1:{unused_tcp_port}").start()


async def test_an_inference_request_and_its_answer_follow_the_open_inference_protocol() -> None:
    outputs = [
        {"name": "LABEL", "datatype": "BYTES", "shape": [2], "data": ["7", ""]},
        {"name": "EXIT", "datatype": "INT32", "shape": [2], "data": [3, 0]},
        {"name": "ERROR", "datatype": "BYTES", "shape": [2], "data": ["", '{"code": "c", "type": "server_error"}']},
    ]
    parameters = {"vireo_operating_point": "p", "vireo_queue_ms": 2.0, "vireo_degraded": "a,b", "other": 1}
    async with scripted() as script:
        script.answers(200, {"outputs": outputs, "parameters": parameters})
        reply = await call(HttpOipClient(script.url), model="a/b", images=(b"x", b"y"), budget=Budget(energy_j=1.5))
    assert script.heads[0].startswith("POST /v2/models/a%2Fb/infer HTTP/1.1")
    (tensor,) = script.bodies[0]["inputs"]
    assert tensor == {"name": "IMAGE", "datatype": "BYTES", "shape": [2], "data": ["eA==", "eQ=="]}
    assert script.bodies[0]["parameters"] == {"top_k": 1, "vireo_energy_j": 1.5}
    assert (reply.outcome, reply.labels, reply.exits, reply.error_code) == (Outcome.PARTIAL, ("7", None), (3,), "c")
    assert reply.server is not None
    assert (reply.server.operating_point, reply.server.queue_ms, reply.server.degraded) == ("p", 2.0, ("a", "b"))


@pytest.mark.parametrize("body", [{}, {"outputs": []}, {"outputs": [{"name": "LABEL"}]}, [1], {"outputs": None}])
async def test_an_inference_answer_that_does_not_follow_the_protocol_is_a_protocol_error(body: Any) -> None:
    async with scripted() as script:
        script.answers(200, body)
        assert (await call(HttpOipClient(script.url))).outcome is Outcome.PROTOCOL_ERROR


async def test_the_router_sends_each_payload_to_its_surface_and_refuses_unknown_ones() -> None:
    async with scripted() as script:
        script.answers(200, OK_BODY)
        client: Client = SurfaceRouter({"http_classify": HttpClassifyClient(script.url)})
        await client.start()
        prepared: Prepared = client.prepare(make_payload())
        assert (await client.send(prepared)).outcome is Outcome.OK
        with pytest.raises(ValueError, match="'smtp'"):
            client.prepare(make_payload(surface="smtp"))
        await client.close()
