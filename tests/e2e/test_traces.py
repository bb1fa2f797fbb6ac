"""A running system whose environment names a collector: each request is one trace, from its caller to the replica."""

from __future__ import annotations

import base64
import gzip
import hashlib
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.e2e.conftest import Picture
from tests.e2e.surfaces import SURFACES, Door, opened
from tests.support.clients import Ask
from tests.support.system import MODEL, System, running_system
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

CHAT = "texthawk2-nano"
PARTS = {"front", "media", "plan", "store", "queue", "run", "settle"}
PARENT_ID = "b7ad6b7169203331"


class Collector:
    """What an operator's collector would have, by trace."""

    def __init__(self) -> None:
        self.traces: defaultdict[str, dict[str, Span]] = defaultdict(dict)
        self.lock = threading.Lock()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.path == "/v1/traces"
                collector.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def take(self, sent: ExportTraceServiceRequest) -> None:
        with self.lock:
            for resource in sent.resource_spans:
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        self.traces[span.trace_id.hex()][span.name] = span

    def trace(self, trace_id: str) -> dict[str, Span]:
        """All parts of a request, once they are here."""

        def whole() -> dict[str, Span] | None:
            with self.lock:
                found = dict(self.traces[trace_id])
            return found if found.keys() >= PARTS else None

        found: dict[str, Span] = wait_until(whole, f"every part of {trace_id}; here: {sorted(self.traces[trace_id])}")
        return found


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever)
    thread.start()
    yield collector
    collector.server.shutdown()
    thread.join()
    collector.server.server_close()


@pytest.fixture(scope="module")
def system(collector: Collector) -> Iterator[System]:
    tenants = [{"name": "acme", "api_key_sha256": [hashlib.sha256(b"key").hexdigest()]}]
    models = ({"id": MODEL}, {"id": CHAT, "options": {"engine": "fake"}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server.server_port}")
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        with running_system("redis.timeout_s=2", models=models, tenants=tenants) as running:
            yield running


def door_of(system: System, trace_id: str) -> AbstractContextManager[Door]:
    traceparent = f"00-{trace_id}-{PARENT_ID}-01"
    return opened(system, {"x-api-key": "key", "traceparent": traceparent, "x-request-id": trace_id})


def check(trace: dict[str, Span], trace_id: str, model: str) -> None:
    front = trace["front"]
    assert front.parent_span_id.hex() == PARENT_ID
    assert {trace[name].parent_span_id for name in PARTS - {"front"}} == {front.span_id}
    facts = {fact.key: fact.value.string_value for fact in front.attributes}
    assert (facts["vireo.request_id"], facts["vireo.model"], facts["vireo.outcome"]) == (trace_id, model, "ok")
    assert trace["queue"].end_time_unix_nano == trace["run"].start_time_unix_nano


@pytest.mark.parametrize("surface", ["http_json", "grpc_vireo"])
def test_a_classification_is_one_trace(
    system: System, collector: Collector, digits: list[Picture], surface: str
) -> None:
    trace_id = hashlib.sha256(surface.encode()).hexdigest()[:32]
    picture = digits[0 if surface == "http_json" else 1][0]
    with door_of(system, trace_id) as door:
        assert SURFACES[surface](door, Ask([picture], model=MODEL)).error is None
    check(collector.trace(trace_id), trace_id, MODEL)


def test_a_chat_is_one_trace(system: System, collector: Collector, digits: list[Picture]) -> None:
    trace_id = "c" * 32
    url = "data:image/png;base64," + base64.b64encode(digits[0][0]).decode()
    content = [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": url}}]
    body = {"model": CHAT, "messages": [{"role": "user", "content": content}], "max_tokens": 4}
    with door_of(system, trace_id) as door:
        door.http.post("/v1/chat/completions", json=body).raise_for_status()
    check(collector.trace(trace_id), trace_id, CHAT)
