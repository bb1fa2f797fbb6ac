"""Every way to ask a running system to classify images, over real sockets, with one answer shape for all."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import httpx
from vireo_pb.oip import open_inference_pb2 as oip
from vireo_pb.oip import open_inference_pb2_grpc as oip_grpc
from vireo_pb.vireo.v1 import vireo_pb2, vireo_pb2_grpc

from tests.support.clients import (
    Ask,
    error_in,
    length_prefixed,
    multipart,
    oip_message,
    split_prefixed,
    vireo_message,
)
from tests.support.system import MODEL, System
from tests.support.waiting import wait_until

TIMEOUT_S = 60.0
MAX_MESSAGE_BYTES = 256 << 20


@dataclass(frozen=True)
class Item:
    """One image's answer: an error code, or a label."""

    error: str | None
    label: str
    score: float
    exit: int
    top_k: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Answer:
    """``error``: code of the whole call's error, or None. ``report``: the ``vireo`` block."""

    error: str | None
    status: Any
    message: str = ""
    items: tuple[Item, ...] = ()
    report: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    """HTTP headers or gRPC trailers."""

    @property
    def codes(self) -> tuple[str, ...]:
        """A label or an error code for each image."""
        return tuple(item.error or item.label for item in self.items)


@dataclass
class Door:
    """Connections to a system, for use by several threads. ``headers`` go with every request, over HTTP and gRPC."""

    system: System
    headers: Mapping[str, str]
    http: httpx.Client
    channel: grpc.Channel

    @property
    def metadata(self) -> list[tuple[str, str]]:
        """The headers, for gRPC."""
        return list(self.headers.items())

    @property
    def vireo(self) -> vireo_pb2_grpc.VireoStub:
        """Client of our own protocol."""
        return vireo_pb2_grpc.VireoStub(self.channel)

    @property
    def oip(self) -> oip_grpc.GRPCInferenceServiceStub:
        """Client of the Open Inference Protocol."""
        return oip_grpc.GRPCInferenceServiceStub(self.channel)


@contextmanager
def opened(system: System, headers: Mapping[str, str] | None = None) -> Iterator[Door]:
    """Connect."""
    limits = httpx.Limits(max_connections=200)
    options = [("grpc.max_send_message_length", MAX_MESSAGE_BYTES), ("grpc.max_receive_message_length", -1)]
    with (
        httpx.Client(base_url=system.http_url, timeout=TIMEOUT_S, headers=headers, limits=limits) as http,
        grpc.insecure_channel(system.grpc_address, options) as channel,
    ):
        yield Door(system, headers or {}, http, channel)


def http_json(door: Door, ask: Ask, **headers: str) -> Answer:
    """``POST /v1/classify`` with JSON."""
    document: dict[str, Any] = {"model": ask.model, "images": [base64.b64encode(data).decode() for data in ask.images]}
    document |= {"top_k": ask.top_k} if ask.top_k is not None else {}
    document |= {"vireo": ask.budget()} if ask.budget() else {}
    headers = {"content-type": "application/json", **headers}
    return _http(door.http.post("/v1/classify", content=json.dumps(document), headers=headers))  # NaN and all


def http_multipart(door: Door, ask: Ask, **headers: str) -> Answer:
    """``POST /v1/classify`` with files."""
    fields = {"model": ask.model}
    fields |= {"top_k": str(ask.top_k)} if ask.top_k is not None else {}
    fields |= {"vireo": json.dumps(ask.budget())} if ask.budget() else {}
    body, content_type = multipart(fields, ask.images)
    return _http(door.http.post("/v1/classify", content=body, headers={"content-type": content_type, **headers}))


def _http(reply: httpx.Response) -> Answer:
    if reply.status_code != 200:
        return http_failure(reply)
    document = reply.json()
    return Answer(
        None, 200, items=tuple(map(_json_item, document["results"])), report=document["vireo"], extra=reply.headers
    )


def http_failure(reply: httpx.Response) -> Answer:
    """Read an error answer; it must have exactly the agreed shape."""
    document = reply.json()
    assert isinstance(document["error"], str) == reply.url.path.startswith("/v2"), document
    error = error_in(document)
    return Answer(error["code"], reply.status_code, error["message"], extra=reply.headers)


def _json_item(result: Mapping[str, Any]) -> Item:
    if "error" in result:
        return Item(result["error"]["code"], "", 0.0, 0)
    top_k = tuple((entry["label"], entry["score"]) for entry in result["top_k"])
    return Item(None, result["label"], result["score"], result["exit"], top_k)


def http_oip(door: Door, ask: Ask, **headers: str) -> Answer:
    """``POST /v2/models/{model}/infer`` with a binary tensor."""
    raw = length_prefixed(ask.images)
    parameters: dict[str, Any] = ask.budget("vireo_")
    parameters |= {"top_k": ask.top_k} if ask.top_k is not None else {}
    tensor = {"name": "IMAGE", "datatype": "BYTES", "shape": [len(ask.images)],
              "parameters": {"binary_data_size": len(raw)}}  # fmt: skip
    head = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
    reply = door.http.post(
        f"/v2/models/{ask.model}/infer",
        content=head + raw,
        headers={"inference-header-content-length": str(len(head)), **headers},
    )
    if reply.status_code != 200:
        return http_failure(reply)
    document = reply.json()
    tensors = {output["name"]: output["data"] for output in document["outputs"]}
    return Answer(None, 200, items=_tensor_items(tensors), report=_report(document["parameters"]), extra=reply.headers)


def _report(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("vireo_"): value for name, value in parameters.items() if name.startswith("vireo_")}


def _tensor_items(tensors: Mapping[str, Sequence[Any]]) -> tuple[Item, ...]:
    num_images = len(tensors["LABEL"])
    k = len(tensors["TOP_LABELS"]) // num_images
    items = []
    for i in range(num_images):
        error = json.loads(tensors["ERROR"][i])["code"] if tensors["ERROR"][i] else None
        pairs = zip(tensors["TOP_LABELS"][i * k : i * k + k], tensors["TOP_SCORES"][i * k : i * k + k], strict=True)
        taken = tensors["EXIT"][i] if "EXIT" in tensors else 0  # only models with exits say which
        items.append(Item(error, tensors["LABEL"][i], tensors["SCORE"][i], taken, tuple(pairs)))
    return tuple(items)


def grpc_vireo(door: Door, ask: Ask, **metadata: str) -> Answer:
    """``vireo.v1.Vireo/Classify``."""
    return _unary(door.vireo.Classify, vireo_message(ask), [*door.metadata, *metadata.items()], _vireo_answer)


def _unary(method: Any, message: Any, metadata: Any, read: Callable[[Any], Answer]) -> Answer:
    try:
        reply, call = method.with_call(message, timeout=TIMEOUT_S, metadata=metadata)
    except grpc.RpcError as error:
        return grpc_failure(error)
    answer = read(reply)
    return Answer(None, grpc.StatusCode.OK, items=answer.items, report=answer.report, extra=_trailers(call))


def grpc_failure(error: Any) -> Answer:
    """Read the status and the trailers of a failed call."""
    trailers = _trailers(error)
    code = json.loads(trailers["vireo-error-bin"])["code"] if "vireo-error-bin" in trailers else "(untyped)"
    return Answer(code, error.code(), error.details() or "", extra=trailers)


def _trailers(call: Any) -> dict[str, Any]:
    return dict(call.trailing_metadata() or ())


def _vireo_answer(reply: vireo_pb2.ClassifyResponse) -> Answer:
    if reply.HasField("error"):
        return Answer(reply.error.code, None, reply.error.message)
    report = {field.name: getattr(reply.vireo, field.name) for field in reply.vireo.DESCRIPTOR.fields}
    return Answer(None, None, items=tuple(map(_vireo_item, reply.results)), report=report)


def _vireo_item(result: vireo_pb2.ClassifyResult) -> Item:
    if result.HasField("error"):
        return Item(result.error.code, "", 0.0, 0)
    top_k = tuple((entry.label, entry.score) for entry in result.top_k)
    return Item(None, result.label, result.score, result.exit, top_k)


def grpc_vireo_stream(door: Door, ask: Ask, **metadata: str) -> Answer:
    """``vireo.v1.Vireo/ClassifyStream``: the same request three times, of which the second's answer is given."""
    messages = [vireo_message(ask, str(n)) for n in range(3)]
    try:
        replies = list(
            door.vireo.ClassifyStream(iter(messages), timeout=TIMEOUT_S, metadata=[*door.metadata, *metadata.items()])
        )
    except grpc.RpcError as error:
        return grpc_failure(error)
    by_id = {reply.id: reply for reply in replies}
    assert set(by_id) == {"0", "1", "2"}
    return _vireo_answer(by_id["1"])


def grpc_oip(door: Door, ask: Ask, **metadata: str) -> Answer:
    """``inference.GRPCInferenceService/ModelInfer``."""
    return _unary(door.oip.ModelInfer, oip_message(ask), [*door.metadata, *metadata.items()], _oip_answer)


def _oip_answer(reply: oip.ModelInferResponse) -> Answer:
    raw = {tensor.name: data for tensor, data in zip(reply.outputs, reply.raw_output_contents, strict=True)}
    tensors = {name: _elements(name, data) for name, data in raw.items()}
    parameters = {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in
                  reply.parameters.items()}  # fmt: skip
    return Answer(None, None, items=_tensor_items(tensors), report=_report(parameters))


def _elements(name: str, data: bytes) -> list[Any]:
    if name in ("SCORE", "TOP_SCORES"):
        return memoryview(data).cast("f").tolist()
    if name == "EXIT":
        return memoryview(data).cast("i").tolist()
    return [element.decode() for element in split_prefixed(data)]


def grpc_oip_stream(door: Door, ask: Ask, **metadata: str) -> Answer:
    """``inference.GRPCInferenceService/ModelStreamInfer``."""
    messages = [oip_message(ask, str(n)) for n in range(3)]
    try:
        replies = list(
            door.oip.ModelStreamInfer(iter(messages), timeout=TIMEOUT_S, metadata=[*door.metadata, *metadata.items()])
        )
    except grpc.RpcError as error:
        return grpc_failure(error)
    by_id = {reply.infer_response.id: reply for reply in replies}
    assert set(by_id) == {"0", "1", "2"}
    reply = by_id["1"]
    if reply.error_message:
        code, _, message = reply.error_message.partition("] ")
        return Answer(code[1:], None, message)
    return _oip_answer(reply.infer_response)


Surface = Callable[..., Answer]
SURFACES: dict[str, Surface] = {
    "http_json": http_json,
    "http_multipart": http_multipart,
    "http_oip": http_oip,
    "grpc_vireo": grpc_vireo,
    "grpc_vireo_stream": grpc_vireo_stream,
    "grpc_oip": grpc_oip,
    "grpc_oip_stream": grpc_oip_stream,
}
UNARY = {name: ask for name, ask in SURFACES.items() if not name.endswith("stream")}


class Load:
    """Threads that ask until told to stop, each on the next surface in turn, and keep every answer.

    Each thread sends a request when it has the answer of the one before. Use as a context; ``answers`` is complete
    after it. An exception of a client (a connection that broke, say) counts as an answer with the error ``transport``.
    """

    def __init__(
        self, door: Door, surfaces: Sequence[Surface], picture: Callable[[], tuple[bytes, str]], num_threads: int = 6
    ) -> None:
        self.answers: list[Answer] = []
        self._door, self._surfaces, self._picture = door, surfaces, picture
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(index,)) for index in range(num_threads)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def failures(self) -> list[str]:
        """What went wrong, one line each."""
        return [f"{a.status} {a.error}: {a.message}" for a in list(self.answers) if a.error is not None]

    def _run(self, index: int) -> None:
        while not self._stop.is_set():
            data, label = self._picture()
            try:
                answer = self._surfaces[index % len(self._surfaces)](self._door, Ask([data], model=MODEL))
                wrong = answer.error is None and answer.codes != (label,)
                self.answers.append(Answer("wrong label", None, f"{answer.codes} for {label}") if wrong else answer)
            except Exception as error:
                self.answers.append(Answer("transport", None, f"{type(error).__name__}: {error}"))
            index += 1

    def wait_for(self, count: int, timeout_s: float = 60.0) -> None:
        """Wait for ``count`` more answers."""
        target = len(self.answers) + count
        wait_until(lambda: len(self.answers) >= target, f"{count} more answers", timeout_s)


def enough_j(surface: Surface, door: Door, ask: Ask) -> float:
    """Joules that a row is charged now at the cheapest point, with some to spare: it changes with the load."""
    refused = surface(door, replace(ask, energy_j=1e-9))
    nearest = re.search(r"energy ([0-9.e+-]+) J of", refused.message)
    assert nearest, refused.message
    return 1.2 * float(nearest[1])
