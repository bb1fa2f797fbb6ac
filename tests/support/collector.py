"""A collector of traces, over HTTP or gRPC, on threads of its own."""

from __future__ import annotations

import gzip
import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.waiting import wait_until

PARTS = {"front", "media", "plan", "store", "queue", "run", "settle"}
"""Spans of one request."""


class Collector:
    """What an operator's collector would have, by trace."""

    def __init__(self) -> None:
        self.traces: defaultdict[str, dict[str, Span]] = defaultdict(dict)
        self.resources: list[dict[str, str]] = []
        """What the processes say of themselves."""
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
                facts = {fact.key: fact.value.string_value for fact in resource.resource.attributes}
                self.resources += [facts] if facts not in self.resources else []
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


@contextmanager
def running_collector() -> Iterator[Collector]:
    """Collect until the context ends."""
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever)
    thread.start()
    try:
        yield collector
    finally:
        collector.server.shutdown()
        thread.join()
        collector.server.server_close()


@contextmanager
def running_grpc_collector(collector: Collector) -> Iterator[str]:
    """Collect over gRPC, too, until the context ends; gives its endpoint."""

    class Traces(TraceServiceServicer):
        def Export(self, request: ExportTraceServiceRequest, context: object) -> ExportTraceServiceResponse:
            collector.take(request)
            return ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(1))
    add_TraceServiceServicer_to_server(Traces(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
