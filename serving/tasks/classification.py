"""Rules of a classify call that hold whatever surface it came by, and its way to the service."""

from __future__ import annotations

import numpy as np

from models.io import PictureIO
from serving.domain import Classification, ClassifyReply, ClassifyRequest, LabelScore, UnaryAnswer
from serving.errors import InvalidRequest, ServingError, TooManyImages
from serving.front.front import BaseCall, shown
from serving.limits import IngressLimits


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


async def reply_to(call: BaseCall, request: ClassifyRequest) -> ClassifyReply:
    """Have a request answered.

    Raises: ServingError: the call failed, or every image of it did, with the first one's error.
    """
    service = call.front.service
    cards = service.rows_for("classify")
    request = call.front.admit(request, cards, call.visit)
    io = call.front.card(request.model, cards).io
    assert isinstance(io, PictureIO)
    if request.top_k > io.num_classes:
        raise InvalidRequest(
            f"top_k is {request.top_k}; {request.model} has {io.num_classes} classes; ask for fewer", param="top_k"
        )
    reply = await service.unary.answer(request)
    call.note_outcome(reply.items)
    items = tuple(
        item if isinstance(item, ServingError) else _classification(item, io, request.top_k) for item in reply.items
    )
    return ClassifyReply(model=reply.model, items=items, report=reply.report)


def _classification(answer: UnaryAnswer, io: PictureIO, top_k: int) -> Classification:
    probabilities = answer.outputs["probabilities"]
    best = np.array([probabilities.argmax()]) if top_k == 1 else np.argsort(-probabilities, kind="stable")[:top_k]
    return Classification(
        exit=answer.exit,
        top_k=tuple(LabelScore(io.label(int(index)), float(probabilities[index])) for index in best),
        indices=tuple(map(int, best)),
        degraded=answer.degraded,
    )
