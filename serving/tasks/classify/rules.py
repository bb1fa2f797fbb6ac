"""Rules of a classify call that hold whatever surface it came by, and its way to the service."""

from __future__ import annotations

from serving.domain import ClassifyReply, ClassifyRequest
from serving.errors import InvalidRequest, ServingError, TooManyImages
from serving.front.front import BaseCall, shown
from serving.limits import IngressLimits
from serving.telemetry.events import OK, PARTIAL


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
    classifiers = call.front.service.classifiers
    reply = await classifiers.classify(call.front.admit(request, classifiers.models(), call.visit))
    failed = [item for item in reply.items if isinstance(item, ServingError)]
    if failed and len(failed) == len(reply.items):
        raise failed[0]
    call.visit.outcome = PARTIAL if failed else OK
    return reply
