"""Seven ways to ask the front door to classify the same images, with one answer shape for all. No test logic."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from fastapi import FastAPI
from google.protobuf.message import Message
from grpc import StatusCode
from vireo_pb.oip import open_inference_pb2 as oip
from vireo_pb.vireo.v1 import vireo_pb2

from serving.domain import Priority
from serving.front.auth import Authenticator
from serving.gateway.grpc import GrpcMethods
from serving.gateway.http import build_http_app
from serving.limits import IngressLimits
from serving.telemetry.events import CallFinished, CallStarted, Event
from tests.support.fake_service import MODEL, FakeService, joined
from tests.support.media_files import encode, gradient

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BOUNDARY = "boundary-of-parts"
GOOD_PNG = encode(gradient(40, 50))
GOOD_LABEL = "class 3"


@dataclass
class CallRecorder:
    """A sink of the front door's events."""

    in_flight: int = 0
    finished: list[CallFinished] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        if isinstance(event, CallStarted):
            self.in_flight += 1
        if isinstance(event, CallFinished):
            self.in_flight -= 1
            self.finished.append(event)


class FakeContext:
    """What Ray Serve passes as ``grpc_context``."""

    def __init__(self, metadata: Sequence[tuple[str, str | bytes]] = (), peer: str = "ipv4:127.0.0.1:4711") -> None:
        self._metadata = list(metadata)
        self._peer = peer
        self.code = StatusCode.OK
        self.details = ""
        self.trailers: dict[str, Any] = {}

    def invocation_metadata(self) -> list[tuple[str, str | bytes]]:
        return self._metadata

    def peer(self) -> str:
        return self._peer

    def set_code(self, code: StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details

    def set_trailing_metadata(self, trailing_metadata: Sequence[tuple[str, Any]]) -> None:
        self.trailers = dict(trailing_metadata)


@dataclass(frozen=True)
class HttpReply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object; fails unless the body has exactly one of the two agreed shapes."""
        return error_in(self.json)


def error_in(document: Any) -> dict[str, Any]:
    """The error of an answer: a text with ours beside it below ``/v2``, an object elsewhere."""
    error = document.pop("error")
    if isinstance(error, str):
        error, document = {"message": error, **document}, {}
    assert set(error) == {"code", "message", "type", "param"}, error
    assert error["message"]
    assert not document
    return error  # type: ignore[no-any-return]


async def asgi(
    app: FastAPI,
    method: str,
    path: str,
    body: bytes | Sequence[bytes] = b"",
    headers: Mapping[str, str] | None = None,
    client: tuple[str, int] | None = ("127.0.0.1", 4711),
    receive: Callable[[], Any] | None = None,
) -> HttpReply:
    """Send one request through the application; ``body`` may be a list of chunks. Names of headers that differ by case
    are one header, sent more than once."""
    path, _, query = path.partition("?")
    chunks = [body] if isinstance(body, bytes) else list(body)
    sent_headers = [(name.lower(), value) for name, value in (headers or {}).items()]
    if "content-length" not in dict(sent_headers):
        sent_headers.append(("content-length", str(sum(map(len, chunks)))))
    sent: list[Any] = []

    async def next_chunk() -> dict[str, Any]:
        if not chunks:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in sent_headers if value != ""],
        "client": client,
        "server": ("127.0.0.1", 8000),
        "state": {},
    }
    await app(scope, receive or next_chunk, send)
    start = sent[0]
    payload = b"".join(message.get("body", b"") for message in sent[1:])
    return HttpReply(start["status"], {k.decode(): v.decode() for k, v in start["headers"]}, payload)


class Calls:
    """The RPCs, called with messages, which arrive as their bytes."""

    def __init__(self, methods: GrpcMethods) -> None:
        self._methods = methods

    def __getattr__(self, name: str) -> Callable[[Any, FakeContext], Any]:
        method = getattr(self._methods, name)
        return lambda sent, context: method(sent_as_bytes(sent), context)


def metrics_page(accept: str, *, names_tenants: bool) -> tuple[bytes, str]:
    """Stands for what is counted."""
    return b"# named\n" if names_tenants else b"# metrics\n", METRICS_TYPE


async def sent_as_bytes(sent: Message | AsyncIterator[Message]) -> AsyncIterator[bytes]:
    """One message, or those of a stream."""
    if isinstance(sent, Message):
        yield sent.SerializeToString()
        return
    async for message in sent:
        yield message.SerializeToString()


@dataclass
class FrontDoor:
    """A served fake."""

    service: FakeService = field(default_factory=FakeService)
    limits: IngressLimits = field(default_factory=IngressLimits)
    authenticator: Authenticator = field(default_factory=lambda: Authenticator({}, True))
    calls: CallRecorder = field(default_factory=CallRecorder)
    max_priorities: Mapping[str, Priority] = field(default_factory=dict)

    def __post_init__(self) -> None:
        service = joined(self.service, self.max_priorities)
        self.app = build_http_app(service, self.authenticator, self.limits, metrics_page, self.calls)
        self.methods = GrpcMethods(
            service=service, authenticator=self.authenticator, limits=self.limits, tell=self.calls
        )
        self.grpc = Calls(self.methods)

    async def post_json(self, document: Any, path: str = "/v1/classify", **headers: str) -> HttpReply:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        return await asgi(self.app, "POST", path, body, {"content-type": "application/json", **headers})


@dataclass(frozen=True)
class Outcome:
    """``error``: code of the whole call's error, or None. ``items``: a label or an error code for each image."""

    error: str | None
    status: int | StatusCode
    message: str = ""
    param: str | None = None
    items: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ask:
    """A classify call, before it is spelt for a surface."""

    images: Sequence[bytes]
    model: str | None = MODEL
    top_k: int | None = None
    latency_ms: float | None = None
    energy_j: float | None = None
    quality_floor: float | None = None

    def budget(self, prefix: str = "") -> dict[str, float]:
        values = {"latency_ms": self.latency_ms, "energy_j": self.energy_j, "quality_floor": self.quality_floor}
        return {prefix + name: value for name, value in values.items() if value is not None}


async def http_json(door: FrontDoor, ask: Ask) -> Outcome:
    document: dict[str, Any] = {"model": ask.model, "images": [base64.b64encode(data).decode() for data in ask.images]}
    if ask.top_k is not None:
        document["top_k"] = ask.top_k
    if ask.budget():
        document["vireo"] = ask.budget()
    return _http_outcome(await door.post_json(document))


async def http_multipart(door: FrontDoor, ask: Ask) -> Outcome:
    fields = {} if ask.model is None else {"model": ask.model}
    if ask.top_k is not None:
        fields["top_k"] = str(ask.top_k)
    if ask.budget():
        fields["vireo"] = json.dumps(ask.budget())
    body, content_type = multipart(fields, ask.images)
    return _http_outcome(await asgi(door.app, "POST", "/v1/classify", body, {"content-type": content_type}))


def multipart(fields: Mapping[str, str | bytes], files: Sequence[bytes]) -> tuple[bytes, str]:
    parts = [
        f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n'.encode()
        + (value.encode() if isinstance(value, str) else value)
        for name, value in fields.items()
    ] + [
        f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="file"; filename="x.png"\r\n'
        f"content-type: image/png\r\n\r\n".encode()
        + data
        for data in files
    ]
    return b"\r\n".join([*parts, f"--{BOUNDARY}--\r\n".encode()]), f"multipart/form-data; boundary={BOUNDARY}"


def _http_outcome(reply: HttpReply) -> Outcome:
    if reply.status != 200:
        error = reply.error
        return Outcome(error["code"], reply.status, error["message"], error["param"])
    items = tuple(item["error"]["code"] if "error" in item else item["label"] for item in reply.json["results"])
    return Outcome(None, 200, items=items)


def length_prefixed(elements: Sequence[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


async def oip_http(door: FrontDoor, ask: Ask) -> Outcome:
    raw = length_prefixed(ask.images)
    parameters: dict[str, Any] = ask.budget("vireo_")
    if ask.top_k is not None:
        parameters["top_k"] = ask.top_k
    tensor = {
        "name": "IMAGE",
        "datatype": "BYTES",
        "shape": [len(ask.images)],
        "parameters": {"binary_data_size": len(raw)},
    }
    head = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
    reply = await asgi(
        door.app,
        "POST",
        f"/v2/models/{ask.model}/infer",
        head + raw,
        {"inference-header-content-length": str(len(head))},
    )
    if reply.status != 200:
        return _http_outcome(reply)
    tensors = {tensor["name"]: tensor["data"] for tensor in reply.json["outputs"]}
    return Outcome(None, 200, items=_items(tensors["LABEL"], tensors["ERROR"]))


def _items(labels: Sequence[str], errors: Sequence[str]) -> tuple[str, ...]:
    return tuple(json.loads(error)["code"] if error else label for label, error in zip(labels, errors, strict=True))


def vireo_message(ask: Ask, id: str = "") -> vireo_pb2.ClassifyRequest:
    return vireo_pb2.ClassifyRequest(
        model=ask.model,
        images=ask.images,
        top_k=ask.top_k or 0,
        vireo=vireo_pb2.Budget(**ask.budget()) if ask.budget() else None,
        id=id,
    )


async def vireo_unary(door: FrontDoor, ask: Ask) -> Outcome:
    context = FakeContext()
    reply = await door.grpc.Classify(vireo_message(ask), context)
    return context_outcome(context) or Outcome(None, StatusCode.OK, items=_vireo_items(reply))


def _vireo_items(reply: vireo_pb2.ClassifyResponse) -> tuple[str, ...]:
    return tuple(item.error.code if item.HasField("error") else item.label for item in reply.results)


def context_outcome(context: FakeContext) -> Outcome | None:
    """The error that a context tells, checked for consistency; None when the status is OK."""
    if context.code == StatusCode.OK:
        return None
    error = orjson.loads(context.trailers["vireo-error-bin"])
    assert set(error) == {"code", "message", "type", "param"}
    assert context.details == error["message"]
    assert "x-request-id" in context.trailers
    return Outcome(error["code"], context.code, error["message"], error["param"])


async def vireo_stream(door: FrontDoor, ask: Ask) -> Outcome:
    """The bad request goes between two good ones, which must be answered."""
    good = Ask([GOOD_PNG])
    messages = [vireo_message(good, "before"), vireo_message(ask, "asked"), vireo_message(good, "after")]
    context = FakeContext()
    replies = {reply.id: reply async for reply in door.grpc.ClassifyStream(stream_of(messages), context)}
    assert context.code == StatusCode.OK
    assert set(replies) == {"before", "asked", "after"}
    assert _vireo_items(replies["before"]) == _vireo_items(replies["after"]) == (GOOD_LABEL,)
    reply = replies["asked"]
    if reply.HasField("error"):
        return Outcome(reply.error.code, 0, reply.error.message, reply.error.param or None)
    return Outcome(None, 0, items=_vireo_items(reply))


def oip_message(ask: Ask, id: str = "") -> oip.ModelInferRequest:
    tensor = oip.ModelInferRequest.InferInputTensor(name="IMAGE", datatype="BYTES", shape=[len(ask.images)])
    parameters = {name: oip.InferParameter(double_param=value) for name, value in ask.budget("vireo_").items()}
    if ask.top_k is not None:
        parameters["top_k"] = oip.InferParameter(int64_param=ask.top_k)
    return oip.ModelInferRequest(
        model_name=ask.model,
        id=id,
        inputs=[tensor],
        raw_input_contents=[length_prefixed(ask.images)],
        parameters=parameters,
    )


async def oip_unary(door: FrontDoor, ask: Ask) -> Outcome:
    context = FakeContext()
    reply = await door.grpc.ModelInfer(oip_message(ask), context)
    return context_outcome(context) or Outcome(None, StatusCode.OK, items=_oip_items(reply))


def split_prefixed(raw: bytes) -> list[bytes]:
    elements = []
    while raw:
        (length,) = struct.unpack_from("<I", raw)
        elements.append(raw[4 : 4 + length])
        raw = raw[4 + length :]
    return elements


def _oip_items(reply: oip.ModelInferResponse) -> tuple[str, ...]:
    raw = {tensor.name: data for tensor, data in zip(reply.outputs, reply.raw_output_contents, strict=True)}
    labels, errors = ([element.decode() for element in split_prefixed(raw[name])] for name in ("LABEL", "ERROR"))
    return _items(labels, errors)


async def oip_stream(door: FrontDoor, ask: Ask) -> Outcome:
    """The bad request goes between two good ones, which must be answered."""
    good = Ask([GOOD_PNG])
    messages = [oip_message(good, "before"), oip_message(ask, "asked"), oip_message(good, "after")]
    context = FakeContext()
    replies = {
        reply.infer_response.id: reply async for reply in door.grpc.ModelStreamInfer(stream_of(messages), context)
    }
    assert context.code == StatusCode.OK
    assert set(replies) == {"before", "asked", "after"}
    for name in ("before", "after"):
        assert _oip_items(replies[name].infer_response) == (GOOD_LABEL,)
    reply = replies["asked"]
    if reply.error_message:
        code, _, message = reply.error_message.partition("] ")
        return Outcome(code[1:], 0, message)
    return Outcome(None, 0, items=_oip_items(reply.infer_response))


async def stream_of(messages: Sequence[Any]) -> AsyncIterator[Any]:
    for message in messages:
        yield message


SURFACES: dict[str, Callable[[FrontDoor, Ask], Any]] = {
    "http_json": http_json,
    "http_multipart": http_multipart,
    "oip_http": oip_http,
    "vireo_unary": vireo_unary,
    "vireo_stream": vireo_stream,
    "oip_unary": oip_unary,
    "oip_stream": oip_stream,
}
