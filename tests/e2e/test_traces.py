"""A running system whose environment names a collector: each request is one trace, from its caller to the replica."""

from __future__ import annotations

import base64
import hashlib
from contextlib import AbstractContextManager

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.e2e.conftest import BILLED_CHAT as CHAT
from tests.e2e.conftest import Picture
from tests.e2e.surfaces import SURFACES, Door, opened
from tests.support.clients import Ask
from tests.support.collector import PARTS, Collector
from tests.support.system import MODEL, System

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

PARENT_ID = "b7ad6b7169203331"


def door_of(billed: System, trace_id: str) -> AbstractContextManager[Door]:
    traceparent = f"00-{trace_id}-{PARENT_ID}-01"
    return opened(billed, {"x-api-key": "acme", "traceparent": traceparent, "x-request-id": trace_id})


def check(trace: dict[str, Span], trace_id: str, model: str) -> None:
    front = trace["front"]
    assert front.parent_span_id.hex() == PARENT_ID
    assert {trace[name].parent_span_id for name in PARTS - {"front"}} == {front.span_id}
    facts = {fact.key: fact.value.string_value for fact in front.attributes}
    assert (facts["vireo.request_id"], facts["vireo.model"], facts["vireo.outcome"]) == (trace_id, model, "ok")
    spent = {fact.key: fact.value for fact in trace["run"].attributes}
    assert spent["vireo.energy_j"].double_value > 0.0
    assert spent["vireo.energy_source"].string_value == "estimate"
    assert trace["queue"].end_time_unix_nano == trace["run"].start_time_unix_nano


@pytest.mark.parametrize("surface", ["http_json", "grpc_vireo"])
def test_a_classification_is_one_trace(
    billed: System, collector: Collector, digits: list[Picture], surface: str
) -> None:
    trace_id = hashlib.sha256(surface.encode()).hexdigest()[:32]
    picture = digits[0 if surface == "http_json" else 1][0]
    with door_of(billed, trace_id) as door:
        assert SURFACES[surface](door, Ask([picture], model=MODEL)).error is None
    check(collector.trace(trace_id), trace_id, MODEL)


def test_a_chat_is_one_trace(billed: System, collector: Collector, digits: list[Picture]) -> None:
    trace_id = "c" * 32
    url = "data:image/png;base64," + base64.b64encode(digits[0][0]).decode()
    content = [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": url}}]
    body = {"model": CHAT, "messages": [{"role": "user", "content": content}], "max_tokens": 4}
    with door_of(billed, trace_id) as door:
        door.http.post("/v1/chat/completions", json=body).raise_for_status()
    check(collector.trace(trace_id), trace_id, CHAT)
    assert {resource["service.name"] for resource in collector.resources} == {"vireo"}
