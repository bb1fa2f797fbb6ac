"""Open Inference Protocol v2 over HTTP: JSON, and the binary tensor extension that tritonclient uses by default.

With the extension, the header ``Inference-Header-Content-Length`` gives the length of the JSON at the start of the
body; the bytes of the inputs follow in order, each as long as its parameter ``binary_data_size`` says. Answers are made
alike. Source: Triton "Binary Tensor Data Extension".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from serving.domain import Budget, ClassifyReply, ClassifyRequest, Surface
from serving.errors import InvalidRequest, UnknownField
from serving.front.front import MODEL_VERSION, shown
from serving.front.http.body import Headers, Receive, read_into
from serving.front.http.json_body import JsonReader, validate
from serving.front.http.json_scan import Bounds, JsonScanner
from serving.front.http.schemas import InferBody, InferInput, InferOutput
from serving.limits import MAX_TYPED_ELEMENTS, IngressLimits
from serving.service import ModelCard
from serving.tasks.infer.tensors import (
    INPUTS,
    OUTPUTS,
    InputTensor,
    OutputTensor,
    budget_from_parameters,
    check_outputs,
    images_from_tensors,
    outputs_from_reply,
    report_parameters,
)

SERVER_NAME = "vireo"
EXTENSIONS = ("binary_tensor_data",)
PLATFORM = "vireo_early_exit"
_MAX_ELEMENT_BYTES = 64
"""Of an element in JSON, spaces included, on average: a double, indented, on a line of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpInfer:
    """A parsed inference and how its answer is to be spelt. ``binary``: output name to whether it travels as bytes."""

    request: ClassifyRequest
    id: str
    wanted: tuple[str, ...]
    binary: dict[str, bool]
    binary_by_default: bool


def json_bounds(limits: IngressLimits) -> Bounds:
    """Of the JSON part of a body, whatever it says. An image that is too large by little fails alone."""
    return Bounds(
        max_values=MAX_TYPED_ELEMENTS + 1024,
        max_plain_bytes=_MAX_ELEMENT_BYTES * MAX_TYPED_ELEMENTS,
        max_string_bytes=2 * limits.max_bytes_per_image,
    )


async def read_infer(
    reader: JsonReader, receive: Receive, headers: Headers, json_length: str | None, limits: IngressLimits
) -> tuple[dict[str, Any], memoryview]:
    """Return the JSON part of a body, parsed, and the bytes after it.

    ``json_length`` is the header ``Inference-Header-Content-Length``. Raises: ClientError.
    """
    if json_length is None:
        return await reader.read(receive, headers, limits, json_bounds(limits)), memoryview(b"")
    if not (json_length.isascii() and json_length.isdigit() and len(json_length) <= 12):
        raise _wrong_length(json_length, limits.max_body_bytes)
    scanner, tail, left = JsonScanner(json_bounds(limits)), bytearray(), int(json_length)

    def feed(piece: bytes) -> None:
        nonlocal left
        scanner.feed(piece[:left])
        tail.extend(piece[left:])
        left = max(0, left - len(piece))

    await read_into(receive, headers, limits, feed)
    if left:
        raise _wrong_length(json_length, int(json_length) - left)
    return await reader.parse(scanner.finish()), memoryview(tail).toreadonly()


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
    model: str,
    request_id: str,
    tenant: str,
    fallback: Budget,
    limits: IngressLimits,
) -> HttpInfer:
    """Make an inference of the JSON part of a body and of the bytes after it.

    Raises: ClientError.
    """
    parsed = validate(InferBody, document)
    budget, top_k = budget_from_parameters(parsed.parameters, fallback, limits)
    wanted = tuple(output.name for output in parsed.outputs or ())
    check_outputs(wanted)
    choices = {output.name: _wants_binary(output) for output in parsed.outputs or ()}
    request = ClassifyRequest(
        request_id=request_id,
        surface=Surface.HTTP_OIP,
        tenant=tenant,
        model=model,
        images=await images_from_tensors(_tensors(parsed.inputs, tail), limits),
        top_k=top_k,
        budget=budget,
    )
    return HttpInfer(
        request=request,
        id=parsed.id,
        wanted=wanted,
        binary={name: choice for name, choice in choices.items() if choice is not None},
        binary_by_default=parsed.parameters.get("binary_data_output", False),
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
    _check_parameters(item.parameters, ("binary_data_size",), f"input {shown(item.name)}")
    size = item.parameters.get("binary_data_size")
    if size is not None and (type(size) is not int or size < 0):
        raise InvalidRequest(
            f"binary_data_size of input {shown(item.name)} is {shown(size)}; send a whole number", param="inputs"
        )
    return size


def _wants_binary(output: InferOutput) -> bool | None:
    _check_parameters(output.parameters, ("binary_data",), f"output {shown(output.name)}")
    binary = output.parameters.get("binary_data")
    if binary is not None and not isinstance(binary, bool):
        raise InvalidRequest(
            f"binary_data of output {shown(output.name)} is {shown(binary)}; send a boolean", param="outputs"
        )
    return binary


def _check_parameters(parameters: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    for name in parameters:
        if name not in known:
            raise UnknownField(
                f"parameter {shown(name)} of {where} is unknown; known: {', '.join(known)}",
                param=f"parameters.{name[:64]}",
            )


def encode_answer(infer: HttpInfer, reply: ClassifyReply) -> tuple[bytes, int | None]:
    """Return (body, length of its JSON part); the length is None when there is no binary part."""
    descriptions, tail = [], []
    for tensor in outputs_from_reply(reply, infer.wanted):
        description: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if infer.binary.get(tensor.name, infer.binary_by_default):
            tail.append(tensor.to_raw())
            description["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            description["data"] = _json_values(tensor)
        descriptions.append(description)
    answer: dict[str, Any] = {"model_name": reply.model, "model_version": MODEL_VERSION}
    if infer.id:
        answer["id"] = infer.id
    head = orjson.dumps(answer | {"parameters": report_parameters(reply), "outputs": descriptions})
    return (head + b"".join(tail), len(head)) if tail else (head, None)


def _json_values(tensor: OutputTensor) -> list[Any]:
    return [value.decode() if isinstance(value, bytes) else value for value in tensor.values]


def model_metadata(card: ModelCard) -> dict[str, Any]:
    """Return the body of ``GET /v2/models/{model}``."""
    return {
        "name": card.id,
        "versions": [MODEL_VERSION],
        "platform": PLATFORM,
        "inputs": [{"name": n, "datatype": d, "shape": s} for n, d, s in INPUTS],
        "outputs": [{"name": n, "datatype": d, "shape": s} for n, d, s in OUTPUTS],
    }
