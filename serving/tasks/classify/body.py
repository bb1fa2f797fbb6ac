"""``POST /v1/classify``: bodies to domain requests, domain replies to bodies."""

from __future__ import annotations

import re
from typing import Any

from serving.domain import Budget, ClassifyReply, ClassifyRequest, ImageInput, Report, Surface
from serving.errors import InvalidRequest, ServingError, TooManyImages
from serving.front.front import shown
from serving.front.http.body import PIECE_BYTES, Headers, header
from serving.front.http.json_body import load_object, validate
from serving.front.http.json_scan import Bounds
from serving.front.http.multipart import Form
from serving.front.http.schemas import MAX_ID_CHARS, BudgetBody, ClassifyBody
from serving.front.images import images_from_text
from serving.front.status import error_object
from serving.limits import IngressLimits

_NUMBER = re.compile(r"[+-]?\d{1,20}(\.\d{0,20})?([eE][+-]?\d{1,3})?", re.ASCII)
_INTEGER = re.compile(r"\d{1,18}", re.ASCII)


def budget_from_headers(headers: Headers, limits: IngressLimits) -> Budget:
    """Return the budget of ``x-vireo-latency-ms`` and ``x-vireo-energy-j``, which a body's own fields override.

    Raises: InvalidRequest: not a number, or out of range.
    """
    latency_ms = _number(headers, b"x-vireo-latency-ms", limits)
    energy_j = _number(headers, b"x-vireo-energy-j", limits)
    return NO_BUDGET if latency_ms is None and energy_j is None else Budget(latency_ms=latency_ms, energy_j=energy_j)


NO_BUDGET = Budget()


def _number(headers: Headers, name: bytes, limits: IngressLimits) -> float | None:
    text = header(headers, name, limits)
    if text is None:
        return None
    if not _NUMBER.fullmatch(text.strip()):
        raise InvalidRequest(
            f"header {name.decode()} is {shown(text)}; send a decimal number greater than 0", param=name.decode()
        )
    return float(text)


def json_bounds(limits: IngressLimits) -> Bounds:
    """Of a JSON body, whatever it says. An image that is too large by little fails alone."""
    return Bounds(
        max_values=4 * limits.max_images + 64,
        max_plain_bytes=limits.max_images * PIECE_BYTES + (1 << 20),
        max_string_bytes=2 * limits.max_bytes_per_image,
    )


async def request_from_document(
    document: dict[str, Any], *, request_id: str, tenant: str, fallback: Budget, limits: IngressLimits
) -> ClassifyRequest:
    """Make a request of a JSON body.

    Raises: InvalidRequest, UnknownField, TooManyImages: the whole call is wrong. A broken image fails alone.
    """
    parsed = validate(ClassifyBody, document)
    if (parsed.image is None) == (parsed.images is None):
        both = "both there" if parsed.image is not None else "both missing"
        raise InvalidRequest(f"image and images are {both}; send exactly one of them", param="image")
    texts = [parsed.image] if parsed.image is not None else parsed.images or []
    check_num_images(len(texts), limits, "images")
    check_top_k(parsed.top_k, limits)
    return ClassifyRequest(
        request_id=request_id,
        surface=Surface.HTTP_CLASSIFY,
        tenant=tenant,
        model=parsed.model,
        images=await images_from_text(texts, "image" if parsed.images is None else "images.{}"),
        top_k=parsed.top_k or 1,
        budget=fallback if parsed.vireo is None else parsed.vireo.to_budget(fallback),
    )


def request_from_form(
    form: Form, *, request_id: str, tenant: str, fallback: Budget, limits: IngressLimits
) -> ClassifyRequest:
    """Make a request of a multipart form. Raises: InvalidRequest, UnknownField."""
    model = form.fields.get("model", "")
    if not model or len(model) > MAX_ID_CHARS:
        raise InvalidRequest(f"model is {shown(model)}; send a model id as a form field", param="model")
    if not form.files:
        raise InvalidRequest("file is missing; send at least one image as a form file named 'file'", param="file")
    top_k = form.fields.get("top_k", "1")
    if not _INTEGER.fullmatch(top_k):
        raise InvalidRequest(f"top_k is {shown(top_k)}; send an integer of at least 1", param="top_k")
    check_top_k(int(top_k), limits)
    budget = fallback
    if "vireo" in form.fields:
        document = load_object(form.fields["vireo"].encode(), max_values=16, what="vireo")
        budget = budget_from_object(document, fallback)
    return ClassifyRequest(
        request_id=request_id,
        surface=Surface.HTTP_CLASSIFY,
        tenant=tenant,
        model=model,
        images=tuple(ImageInput(encoded=data) for data in form.files),
        top_k=int(top_k),
        budget=budget,
    )


def budget_from_object(document: dict[str, Any], fallback: Budget) -> Budget:
    """Read a ``vireo`` object, naming its fields as the JSON body does.

    Raises: InvalidRequest, UnknownField.
    """
    try:
        return validate(BudgetBody, document).to_budget(fallback)
    except InvalidRequest as error:
        error.param = f"vireo.{error.param}"
        raise


def check_num_images(num_images: int, limits: IngressLimits, param: str) -> None:
    """Raises: TooManyImages."""
    if num_images > limits.max_images:
        raise TooManyImages(
            f"request has {num_images} images; the limit is {limits.max_images}. Split it into several", param=param
        )


def check_top_k(top_k: int | None, limits: IngressLimits) -> None:
    """Raises: InvalidRequest."""
    if top_k is not None and not 1 <= top_k <= limits.max_top_k:
        raise InvalidRequest(
            f"top_k is {shown(top_k)}; it must be at least 1 and at most {limits.max_top_k}", param="top_k"
        )


def reply_to_json(reply: ClassifyReply) -> dict[str, Any]:
    """Return the body of a successful answer, ready for serialisation."""
    return {
        "object": "list",
        "model": reply.model,
        "results": [_result(index, item) for index, item in enumerate(reply.items)],
        "vireo": report_to_json(reply),
    }


def _result(index: int, item: Any) -> dict[str, Any]:
    if isinstance(item, ServingError):
        return {"index": index, "error": error_object(item)}
    return {
        "index": index,
        "label": item.label,
        "score": item.score,
        "exit": item.exit,
        "top_k": [{"label": entry.label, "score": entry.score} for entry in item.top_k],
    }


def report_to_json(reply: ClassifyReply) -> dict[str, Any]:
    """Return the ``vireo`` block."""
    return report_fields(reply.report)


def report_fields(report: Report) -> dict[str, Any]:
    """Return a report as the ``vireo`` block spells it."""
    return {
        "operating_point": report.operating_point,
        "energy_j": report.energy_j,
        "energy_source": report.energy_source,
        "queue_ms": report.queue_ms,
        "compute_ms": report.compute_ms,
        "cache": report.cache,
        "degraded": list(report.degraded),
        "guard": report.guard,
    }
