"""Traces, over OpenTelemetry: off unless the usual ``OTEL_*`` variables name a collector.

    front -+- media, plan, store      in the gateway
           +- queue, run              in the replica that answers, from the ``traceparent`` that goes with the call
           +- settle                  in the gateway, after the answer

While it is off the library is not even imported, and a span costs a call.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Final, TypeAlias

import structlog

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

_log = structlog.get_logger(__name__)
_HEADER: Final = "traceparent"
Parent: TypeAlias = "Context | None"
"""What a span that is made later, elsewhere, belongs to."""


class _NoSpan:
    """Stands for every span while tracing is off."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        return None


_NO_SPAN = _NoSpan()
_tracer: Tracer | None = None


def is_wanted(variables: Mapping[str, str]) -> bool:
    """Whether the environment names a collector and does not switch traces off."""
    if variables.get("OTEL_SDK_DISABLED", "").lower() == "true" or variables.get("OTEL_TRACES_EXPORTER") == "none":
        return False
    places = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return variables.get("OTEL_TRACES_EXPORTER") == "otlp" or any(variables.get(place) for place in places)


def start() -> None:
    """Export the spans of this process over OTLP, if the environment wants that. Once per process."""
    if _tracer is not None or not is_wanted(os.environ):
        return
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    told = OTELResourceDetector().detect().attributes  # what the environment says goes before what we say
    ours = {"service.name": "vireo", "service.instance.id": str(uuid.uuid4())}
    provider = TracerProvider(resource=Resource.create({**ours, **told}))
    provider.add_span_processor(BatchSpanProcessor(_exporter(os.environ)))
    use(provider)
    _log.info("traces are exported")


def _exporter(variables: Mapping[str, str]) -> SpanExporter:
    """By the protocol that the environment names, as the other SDKs of OpenTelemetry choose it."""
    asked = variables.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or variables.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if asked == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as OverGrpc

        return OverGrpc()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as OverHttp

    if asked not in (None, "http/protobuf"):
        _log.warning("protocol of traces is not offered; they are sent as http/protobuf", protocol=asked)
    return OverHttp()


def use(provider: TracerProvider | None) -> None:
    """Make spans with this provider from now on; None: make none."""
    global _tracer
    _tracer = None if provider is None else provider.get_tracer("vireo")


def span(name: str, parent: Parent = None) -> AbstractContextManager[object]:
    """A span around a part of a request; of the one that is open here, unless a ``parent`` is given."""
    return _NO_SPAN if _tracer is None else _tracer.start_as_current_span(name, context=parent)


def begin(name: str, traceparent: str, attributes: Mapping[str, str]) -> Span | None:
    """Open the outermost span of a request, in the task that serves it. Whoever opened it ends it."""
    if _tracer is None:
        return None
    from opentelemetry import context, trace

    parent = _context(traceparent)
    opened = _tracer.start_span(name, context=parent, kind=trace.SpanKind.SERVER, attributes=attributes)
    context.attach(trace.set_span_in_context(opened))  # until the task is over
    return opened


def end(opened: Span | None, attributes: Mapping[str, str]) -> None:
    """End it, with what is known by now."""
    if opened is not None:
        opened.set_attributes(attributes)
        opened.end()


def current() -> Parent:
    """The span that is open here, for one that is made later and elsewhere."""
    if _tracer is None:
        return None
    from opentelemetry import context

    return context.get_current()


def traceparent() -> str:
    """The span that is open here, as it travels to a replica; empty while tracing is off."""
    if _tracer is None:
        return ""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get(_HEADER, "")


def record(
    traceparent: str, *spans: tuple[str, float], ago_s: float = 0.0, run: Mapping[str, str | float] | None = None
) -> None:
    """Spans that are over: names and seconds, one after the other, the last of which ended ``ago_s`` ago. ``run``:
    attributes of the span of that name."""
    if _tracer is None or not traceparent:
        return
    parent = _context(traceparent)
    start_ns = time.time_ns() - _ns(ago_s) - sum(_ns(seconds) for _, seconds in spans)
    for name, seconds in spans:
        end_ns = start_ns + _ns(seconds)
        attributes = run if name == "run" else None
        _tracer.start_span(name, context=parent, start_time=start_ns, attributes=attributes).end(end_ns)
        start_ns = end_ns


def _ns(seconds: float) -> int:
    return max(0, int(seconds * 1e9))


def _context(traceparent: str) -> Context:
    """Empty for what is no ``traceparent``: the span then begins a trace of its own."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({_HEADER: traceparent}, context=Context())
