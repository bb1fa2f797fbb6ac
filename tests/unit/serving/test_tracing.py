"""Traces: off unless a collector is named, one trace from the caller through the gateway to the replica."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from vireo_pb.vireo.v1 import vireo_pb2

from serving.telemetry import tracing
from tests.support.clients import FakeContext, FrontDoor
from tests.support.collector import running_collector, running_grpc_collector

CALLERS = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE_ID = 0x0AF7651916CD43DD8448EB211C80319C


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.use(provider)
    yield exporter
    tracing.use(None)


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


@pytest.mark.parametrize(
    ("variables", "is_wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, False),
    ],
    ids=str,
)
def test_the_usual_variables_switch_it_on(variables: dict[str, str], is_wanted: bool) -> None:
    assert tracing.is_wanted(variables) == is_wanted


def test_while_it_is_off_nothing_is_imported_and_nothing_is_sent_along() -> None:
    code = (
        "import sys\n"
        "from serving.telemetry import tracing\n"
        "tracing.start()\n"
        "with tracing.span('front'):\n"
        "    assert tracing.traceparent() == ''\n"
        "    assert tracing.current() is None\n"
        "tracing.end(tracing.begin('front', 'x', {}), {})\n"
        "tracing.record('x', ('queue', 1.0))\n"
        "assert not any(name.startswith('opentelemetry') for name in sys.modules), 'imported'\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


async def test_a_request_is_one_trace_also_where_it_goes_on_elsewhere(exporter: InMemorySpanExporter) -> None:
    async def settle(parent: tracing.Parent) -> None:
        with tracing.span("settle", parent):
            await asyncio.sleep(0)

    async def serve() -> None:
        opened = tracing.begin("front", CALLERS, {"vireo.request_id": "r"})
        with tracing.span("media"):
            await asyncio.sleep(0)
        tracing.record(tracing.traceparent(), ("queue", 0.25), ("run", 0.5), run={"vireo.energy_j": 2.5})
        later = tracing.current()
        tracing.end(opened, {"vireo.outcome": "ok"})
        await asyncio.create_task(settle(later))

    await asyncio.create_task(serve())
    spans = by_name(exporter)
    assert set(spans) == {"front", "media", "queue", "run", "settle"}
    assert {span.context.trace_id for span in spans.values()} == {TRACE_ID}
    front = spans.pop("front")
    assert front.parent is not None
    assert front.parent.span_id == 0xB7AD6B7169203331
    assert dict(front.attributes or {}) == {"vireo.request_id": "r", "vireo.outcome": "ok"}
    assert {span.parent and span.parent.span_id for span in spans.values()} == {front.context.span_id}
    queue, run = spans["queue"], spans["run"]
    assert queue.end_time == run.start_time
    assert (dict(queue.attributes or {}), dict(run.attributes or {})) == ({}, {"vireo.energy_j": 2.5})
    assert (run.end_time or 0) - (queue.start_time or 0) == 750_000_000
    assert tracing.traceparent() == "", "the test's own task has no span"


@pytest.mark.parametrize("bad", ["", "x", CALLERS[:-3], "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "\x00" * 9000])
async def test_what_is_no_traceparent_begins_a_trace_of_its_own(exporter: InMemorySpanExporter, bad: str) -> None:
    tracing.end(tracing.begin("front", bad, {}), {})
    (span,) = exporter.get_finished_spans()
    assert span.parent is None
    assert span.context.trace_id not in (0, TRACE_ID)


async def test_http_and_grpc_honour_the_callers_trace(exporter: InMemorySpanExporter) -> None:
    door = FrontDoor()
    await door.post_json({}, traceparent=CALLERS, **{"x-request-id": "mine"})
    (over_http,) = exporter.get_finished_spans()
    exporter.clear()
    context = FakeContext([("traceparent", CALLERS), ("x-request-id", "mine")])
    await door.grpc.Classify(vireo_pb2.ClassifyRequest(), context)
    (over_grpc,) = exporter.get_finished_spans()
    for span in (over_http, over_grpc):
        assert span.context.trace_id == TRACE_ID
        facts = dict(span.attributes or {})
        assert facts["vireo.request_id"] == "mine"
        assert facts["vireo.outcome"] not in ("ok", "")


NAMED = {"OTEL_SERVICE_NAME": "eyes", "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test"}


@pytest.mark.parametrize("named", [{}, NAMED, {"OTEL_RESOURCE_ATTRIBUTES": "service.name=eyes"}], ids=str)
@pytest.mark.parametrize("protocol", [None, "http/protobuf", "grpc"])
def test_a_collector_gets_the_spans_with_what_the_environment_says(protocol: str | None, named: dict[str, str]) -> None:
    with running_collector() as collector, running_grpc_collector(collector) as grpc_endpoint:
        over_http = f"http://127.0.0.1:{collector.server.server_port}"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
        environment |= {"OTEL_EXPORTER_OTLP_ENDPOINT": grpc_endpoint if protocol == "grpc" else over_http, **named}
        environment |= {"OTEL_EXPORTER_OTLP_PROTOCOL": protocol} if protocol else {}
        code = (
            "from serving.telemetry import tracing\n"
            "tracing.start()\n"
            f"tracing.end(tracing.begin('front', {CALLERS!r}, {{'vireo.request_id': 'r'}}), {{}})\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        span = collector.traces[f"{TRACE_ID:032x}"]["front"]
        assert {fact.key: fact.value.string_value for fact in span.attributes} == {"vireo.request_id": "r"}
        assert span.kind == span.SPAN_KIND_SERVER
        (resource,) = collector.resources
        assert resource["service.name"] == ("eyes" if named else "vireo")
        assert resource.get("deployment.environment.name") == ("test" if named is NAMED else None)
        assert resource["service.instance.id"]
