"""``POST /v1/classify``: JSON or a form to a request, the reply to JSON."""

from __future__ import annotations

import re
from typing import Any, Final

from serving.domain import Budget, Classification, ClassifyReply, ClassifyRequest, ImageInput, Surface
from serving.errors import InvalidRequest, ServingError
from serving.front.budget import BudgetBody, budget_from_object
from serving.front.front import check_model, shown
from serving.front.http.body import PIECE_BYTES, read_into
from serving.front.http.call import Answer, Call, Route, json_answer
from serving.front.http.json_body import limit, load_object, validate
from serving.front.http.json_scan import Bounds
from serving.front.http.multipart import Form, FormReader
from serving.front.http.openapi import BINARY, BUDGET_HEADERS, json_content, operation
from serving.front.images import images_from_text
from serving.front.status import error_object
from serving.limits import MAX_ID_CHARS, IngressLimits
from serving.tasks.classification import check_num_images, check_top_k, reply_to
from serving.tasks.classify.schemas import (
    ClassifyAnswer,
    ClassifyBody,
    FailedResultAnswer,
    ResultAnswer,
)

_INTEGER = re.compile(r"\d{1,18}", re.ASCII)


async def classify(call: Call) -> Answer:
    """``POST /v1/classify``."""
    limits, fallback = call.front.limits, call.budget()
    if call.media_type("application/json", "multipart/form-data") == "application/json":
        request = await request_from_document(
            await call.read_json(json_bounds(limits)),
            request_id=call.request_id,
            tenant=call.tenant,
            fallback=fallback,
            limits=limits,
        )
    else:
        reader = FormReader(call.content_type, limits)
        await read_into(call.receive, call.headers, limits, reader.feed)
        request = request_from_form(
            reader.finish(), request_id=call.request_id, tenant=call.tenant, fallback=fallback, limits=limits
        )
    return json_answer(reply_to_json(await reply_to(call, request)))


def json_bounds(limits: IngressLimits) -> Bounds:
    """Of a JSON body, whatever it says. An image that is too large by little fails alone."""
    return Bounds(
        max_values=4 * limits.max_images + 64,
        max_plain_bytes=limits.max_images * PIECE_BYTES + (1 << 20),
        max_string_bytes=limits.max_image_chars,
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
        model=parsed.model or "",
        images=await images_from_text(texts, "image" if parsed.images is None else "images.{}"),
        top_k=parsed.top_k or 1,
        budget=fallback if parsed.vireo is None else parsed.vireo.to_budget(fallback),
    )


def request_from_form(
    form: Form, *, request_id: str, tenant: str, fallback: Budget, limits: IngressLimits
) -> ClassifyRequest:
    """Make a request of a multipart form. Raises: InvalidRequest, UnknownField."""
    model = check_model(form.fields.get("model"))
    if not form.files:
        raise InvalidRequest("file is missing; send at least one image as a form file named 'file'", param="file")
    top_k = form.fields.get("top_k", "1")
    if not _INTEGER.fullmatch(top_k):
        raise InvalidRequest(f"top_k is {shown(top_k)}; send an integer of at least 1", param="top_k")
    check_top_k(int(top_k), limits)
    if "vireo" in form.fields:
        document = load_object(form.fields["vireo"].encode(), max_values=128, what="vireo")
        fallback = budget_from_object(document, fallback)
    return ClassifyRequest(
        request_id=request_id,
        surface=Surface.HTTP_CLASSIFY,
        tenant=tenant,
        model=model,
        images=tuple(ImageInput(encoded=data) for data in form.files),
        top_k=int(top_k),
        budget=fallback,
    )


def reply_to_json(reply: ClassifyReply) -> ClassifyAnswer:
    """Return the body of a successful answer, ready for serialisation."""
    return {
        "object": "list",
        "model": reply.model,
        "results": [_result(index, item) for index, item in enumerate(reply.items)],
        "vireo": reply.report,
    }


def _result(index: int, item: Classification | ServingError) -> ResultAnswer | FailedResultAnswer:
    if isinstance(item, ServingError):
        return FailedResultAnswer(index=index, error=error_object(item))
    return ResultAnswer(index=index, label=item.label, score=item.score, exit=item.exit, top_k=item.top_k)


_FORM: Final = {
    "type": "object",
    "required": ["file"],
    "additionalProperties": False,
    "properties": {
        "model": {
            "type": "string",
            "maxLength": MAX_ID_CHARS,
            "description": "May be left out if only one model classifies.",
        },
        "file": {"type": "array", "items": BINARY["schema"], "minItems": 1, "maxItems": limit("max_images")},
        "top_k": {"type": "integer", "minimum": 1, "maximum": limit("max_top_k")},
        "vireo": BudgetBody,
    },
}

ROUTES: Final = (
    Route(
        method="POST",
        path="/v1/classify",
        handler=classify,
        surface=Surface.HTTP_CLASSIFY,
        operation=operation(
            "Classify images",
            ClassifyAnswer,
            *BUDGET_HEADERS,
            id="classify",
            body={**json_content(ClassifyBody), "multipart/form-data": {"schema": _FORM}},
        ),
    ),
)
