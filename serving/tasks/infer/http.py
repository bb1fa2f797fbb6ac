"""Open Inference Protocol v2 over HTTP: JSON, and the binary tensor extension that tritonclient uses by default.

With the extension, the header ``Inference-Header-Content-Length`` gives the length of the JSON at the start of the
body; the bytes of the inputs follow in order, each as long as its parameter ``binary_data_size`` says. Answers are made
alike. Source: Triton "Binary Tensor Data Extension".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson

from serving.domain import Budget, ClassifyReply, Surface, UnaryReply, UnaryRequest
from serving.errors import InvalidRequest, NotReady, UnknownField
from serving.front.front import MODEL_VERSION, shown
from serving.front.http.body import read_into
from serving.front.http.call import JSON_TYPE, Answer, Call, Handler, Route, json_answer
from serving.front.http.json_body import limit, validate
from serving.front.http.json_scan import Bounds, JsonScanner
from serving.front.http.openapi import (
    BINARY,
    BUDGET_HEADERS,
    json_content,
    operation,
    parameter,
    path_parameter,
)
from serving.limits import MAX_TYPED_ELEMENTS, IngressLimits
from serving.service import Card
from serving.tasks.infer.admin import card_for_infer, model_config, model_metadata, repository_index, server_metadata
from serving.tasks.infer.parameters import read_parameters, report_parameters
from serving.tasks.infer.schemas import (
    IndexBody,
    InferAnswer,
    InferBody,
    InferInput,
    InferOutput,
    ModelConfigAnswer,
    ModelIndexAnswer,
    ModelMetadataAnswer,
    OutputTensorAnswer,
    ServerMetadataAnswer,
    StatisticsAnswer,
)
from serving.tasks.infer.statistics import statistics
from serving.tasks.infer.tensors import (
    CallFacts,
    InputTensor,
    OutputTensor,
    Wanted,
    chosen_outputs,
    most_classes,
    outputs_from_reply,
    reply_to_tensors,
    request_from_tensors,
)

_JSON_LENGTH: Final = b"inference-header-content-length"
_MAX_ELEMENT_BYTES = 64
"""Of an element in JSON, spaces included, on average: a double, indented, on a line of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpInfer:
    """A parsed inference and how its answer is to be spelt. ``binary``: output name to whether it travels as bytes."""

    card: Card
    request: UnaryRequest
    id: str
    wanted: tuple[Wanted, ...]
    binary: dict[str, bool]
    binary_by_default: bool


def json_bounds(limits: IngressLimits) -> Bounds:
    """Of the JSON part of a body, whatever it says. An image that is too large by little fails alone."""
    return Bounds(
        max_values=MAX_TYPED_ELEMENTS + 1024,
        max_plain_bytes=_MAX_ELEMENT_BYTES * MAX_TYPED_ELEMENTS,
        max_string_bytes=limits.max_image_chars,
    )


async def infer(call: Call) -> Answer:
    """``POST /v2/models/{model}[/versions/{version}]/infer``."""
    call.media_type("application/json", "application/octet-stream", "")
    card = card_for_infer(call.front, call.path_params["model"], call.path_params.get("version", ""))
    call.visit.model = card.id
    asked = await infer_from_document(
        *await _read(call),
        card=card,
        request_id=call.request_id,
        tenant=call.tenant,
        fallback=call.budget(),
        limits=call.front.limits,
    )
    body, head_length = encode_answer(asked, await reply_to_tensors(call, asked.request))
    if head_length is None:
        return Answer(body, 200, JSON_TYPE)
    return Answer(body, 200, b"application/octet-stream", ((_JSON_LENGTH, str(head_length).encode()),))


async def show_server(_call: Call) -> Answer:
    """``GET /v2``."""
    return json_answer(server_metadata())


async def show_model(call: Call) -> Answer:
    """``GET /v2/models/{model}[/versions/{version}]``."""
    return json_answer(model_metadata(_card(call)))


async def show_config(call: Call) -> Answer:
    """``GET /v2/models/{model}[/versions/{version}]/config``."""
    return json_answer(model_config(_card(call), call.front.limits.max_images))


async def show_readiness(call: Call) -> Answer:
    """``GET /v2/models/{model}[/versions/{version}]/ready``: of models of any task."""
    model = _card(call).id
    if not call.front.service.is_model_ready(model):
        raise NotReady(f"no replica of {model} can answer now: it is starting, or being replaced. Try again")
    return json_answer({"name": model, "ready": True})


async def show_statistics(call: Call) -> Answer:
    """``GET /v2/models/stats`` and ``GET /v2/models/{model}[/versions/{version}]/stats``."""
    cards = (_card(call),) if "model" in call.path_params else call.front.service.cards()
    return json_answer({"model_stats": await statistics(cards)})


async def index(call: Call) -> Answer:
    """``POST /v2/repository/index``, with or without a body."""
    scanner = JsonScanner(_INDEX_BOUNDS)
    await read_into(call.receive, call.headers, call.front.limits, scanner.feed)
    text = scanner.finish()
    asked = validate(IndexBody, await call.reader.parse(text) if text.plain.strip() else {})
    return json_answer(repository_index(call.front.service, only_ready=bool(asked.ready)))


async def show_regions(_call: Call) -> Answer:
    """Shared memory is not offered, so no region of it is registered."""
    return json_answer([])


def _card(call: Call) -> Card:
    return call.front.card(call.path_params["model"], call.front.service.cards(), call.path_params.get("version", ""))


async def _read(call: Call) -> tuple[dict[str, Any], memoryview]:
    """Return the JSON part of a body, parsed, and the bytes after it. Raises: ClientError."""
    limits, header = call.front.limits, call.headers.get(_JSON_LENGTH)
    if header is None:
        return await call.read_json(json_bounds(limits)), memoryview(b"")
    json_length = header.decode("latin-1")
    if not (json_length.isascii() and json_length.isdigit() and len(json_length) <= 12):
        raise _wrong_length(json_length, limits.max_body_bytes)
    scanner, tail, left = JsonScanner(json_bounds(limits)), bytearray(), int(json_length)

    def feed(piece: bytes) -> None:
        nonlocal left
        scanner.feed(piece[:left])
        tail.extend(piece[left:])
        left = max(0, left - len(piece))

    await read_into(call.receive, call.headers, limits, feed)
    if left:
        raise _wrong_length(json_length, int(json_length) - left)
    return await call.reader.parse(scanner.finish()), memoryview(tail).toreadonly()


def _wrong_length(json_length: str, most: int) -> InvalidRequest:
    return InvalidRequest(
        f"Inference-Header-Content-Length is {shown(json_length)}; it must be a number of at most {most}, "
        "the length of the body",
        param="inference-header-content-length",
    )


async def infer_from_document(
    document: dict[str, Any],
    tail: memoryview,
    *,
    card: Card,
    request_id: str,
    tenant: str,
    fallback: Budget,
    limits: IngressLimits,
) -> HttpInfer:
    """Make an inference of the JSON part of a body and of the bytes after it.

    Raises: ClientError.
    """
    parsed = validate(InferBody, document)
    parameters = parsed.parameters or {}
    wishes = read_parameters(parameters, fallback, card, limits)
    wanted = chosen_outputs(
        [(one.name, (one.parameters or {}).get("classification")) for one in parsed.outputs or ()], card
    )
    choices = {output.name: _wants_binary(output) for output in parsed.outputs or ()}
    facts = CallFacts(
        request_id=request_id,
        surface=Surface.HTTP_OIP,
        tenant=tenant,
        model=card.id,
        budget=wishes.budget,
        deadline_s=wishes.deadline_s,
    )
    return HttpInfer(
        card=card,
        request=await request_from_tensors(
            _tensors(parsed.inputs, tail), card, most_classes(wishes.top_k, wanted, limits), limits, facts
        ),
        id=parsed.id or "",
        wanted=wanted,
        binary={name: choice for name, choice in choices.items() if choice is not None},
        binary_by_default=bool(parameters.get("binary_data_output")),
    )


def _tensors(inputs: list[InferInput], tail: memoryview) -> list[InputTensor]:
    tensors = []
    for item in inputs:
        size = _binary_size(item)
        if size is not None and size > len(tail):
            raise InvalidRequest(
                f"input {shown(item.name)} claims {size} binary bytes; {len(tail)} are left in the body", param="inputs"
            )
        raw, tail = (None, tail) if size is None else (tail[:size], tail[size:])
        tensors.append(
            InputTensor(name=item.name, datatype=item.datatype, shape=tuple(item.shape), raw=raw, values=item.data)
        )
    if len(tail):
        raise InvalidRequest(f"{len(tail)} bytes are left after the last input; correct binary_data_size", param="body")
    return tensors


def _binary_size(item: InferInput) -> int | None:
    parameters = item.parameters or {}
    _check_parameters(parameters, ("binary_data_size",), f"input {shown(item.name)}")
    size = parameters.get("binary_data_size")
    if size is not None and (type(size) is not int or size < 0):
        raise InvalidRequest(
            f"binary_data_size of input {shown(item.name)} is {shown(size)}; send a whole number", param="inputs"
        )
    return size


def _wants_binary(output: InferOutput) -> bool | None:
    parameters = output.parameters or {}
    _check_parameters(parameters, ("binary_data", "classification"), f"output {shown(output.name)}")
    binary = parameters.get("binary_data")
    if binary is not None and not isinstance(binary, bool):
        raise InvalidRequest(
            f"binary_data of output {shown(output.name)} is {shown(binary)}; send a boolean", param="outputs"
        )
    return binary


def _check_parameters(parameters: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    for name, value in parameters.items():
        if name not in known and value is not None:
            raise UnknownField(
                f"parameter {shown(name)} of {where} is unknown; known: {', '.join(known)}",
                param=f"parameters.{name[:64]}",
            )


def encode_answer(infer: HttpInfer, reply: ClassifyReply | UnaryReply) -> tuple[bytes, int | None]:
    """Return (body, length of its JSON part); the length is None when there is no binary part."""
    descriptions, tail = [], []
    for tensor in outputs_from_reply(reply, infer.card, infer.wanted):
        description: OutputTensorAnswer = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": tensor.shape,
        }
        if infer.binary.get(tensor.name, infer.binary_by_default):
            tail.append(tensor.to_raw())
            description["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            description["data"] = _json_values(tensor)
        descriptions.append(description)
    answer: InferAnswer = {
        "model_name": reply.model,
        "model_version": MODEL_VERSION,
        "parameters": report_parameters(reply.report),
        "outputs": descriptions,
    }
    if infer.id:
        answer["id"] = infer.id
    head = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    return (head + b"".join(tail), len(head)) if tail else (head, None)


def _json_values(tensor: OutputTensor) -> Any:
    if isinstance(tensor.values, np.ndarray):
        return tensor.values
    return [value.decode() if isinstance(value, bytes) else value for value in tensor.values]


# -- routes ----------------------------------------------------------------------------------------------------------

_BINARY: Final = {"application/octet-stream": BINARY}
_LENGTH: Final = parameter(
    "header",
    "Inference-Header-Content-Length",
    {"type": "integer", "minimum": 0, "maximum": limit("max_body_bytes")},
    "Binary tensor extension: length of the JSON at the start of the body.",
)


_INDEX_BOUNDS: Final = Bounds(max_values=16, max_plain_bytes=1024, max_string_bytes=256)


def _of_model(path: str, *parameters: dict[str, Any], ids: str) -> tuple[Route, ...]:
    def get(end: str, handler: Handler, id: str, summary: str, answer: Any = None) -> Route:
        described = operation(summary, answer, *parameters, id=ids.format(id))
        return Route(method="GET", path=path + end, handler=handler, operation=described)

    described = operation(
        "Infer (Open Inference Protocol)",
        {**json_content(InferAnswer), **_BINARY},
        *parameters,
        _LENGTH,
        *BUDGET_HEADERS,
        id=ids.format("infer"),
        body={**json_content(InferBody), **_BINARY},
    )
    return (
        Route(method="POST", path=f"{path}/infer", handler=infer, operation=described, surface=Surface.HTTP_OIP),
        get("", show_model, "get_model_metadata", "Model metadata", ModelMetadataAnswer),
        get("/config", show_config, "get_model_config", "Model configuration, as Triton spells it", ModelConfigAnswer),
        get("/ready", show_readiness, "get_model_ready", "Is the model ready?"),
        get("/stats", show_statistics, "get_model_statistics", "Statistics of the model", StatisticsAnswer),
    )


_MODEL, _VERSION = path_parameter("model"), path_parameter("version")
_SERVER: Final = operation("Server metadata (Open Inference Protocol)", ServerMetadataAnswer, id="get_server_metadata")
_STATISTICS: Final = operation("Statistics of every model", StatisticsAnswer, id="get_statistics")
_INDEX: Final = operation(
    "Every model that is served",
    json_content({"type": "array", "items": ModelIndexAnswer}),
    id="get_repository_index",
)
_OPTIONAL: Final = {"required": False, "content": json_content(IndexBody)}


def _regions(kind: str) -> tuple[Route, ...]:
    path, ids = f"/v2/{kind}sharedmemory", f"{kind}_shared_memory"
    none = json_content({"type": "array", "maxItems": 0})
    all_of_them = operation(f"Regions of {kind} shared memory: none", none, id=f"get_{ids}")
    one = operation(f"A region of {kind} shared memory: none", none, path_parameter("region"), id=f"get_{ids}_region")
    return (
        Route(method="GET", path=f"{path}/status", handler=show_regions, operation=all_of_them),
        Route(method="GET", path=f"{path}/region/{{region}}/status", handler=show_regions, operation=one),
    )


ROUTES: Final = (
    Route(method="GET", path="/v2", handler=show_server, operation=_SERVER),
    Route(method="GET", path="/v2/models/stats", handler=show_statistics, operation=_STATISTICS),
    Route(method="POST", path="/v2/repository/index", handler=index, operation=_INDEX | {"requestBody": _OPTIONAL}),
    *_regions("system"),
    *_regions("cuda"),
    *_of_model("/v2/models/{model}", _MODEL, ids="{}"),
    *_of_model("/v2/models/{model}/versions/{version}", _MODEL, _VERSION, ids="{}_of_version"),
)
