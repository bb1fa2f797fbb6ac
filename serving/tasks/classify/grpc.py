"""``vireo.v1.Vireo``'s ``Classify`` and ``ClassifyStream``: messages to requests, replies to messages."""

from __future__ import annotations

from typing import Final

from vireo_pb.vireo.v1 import vireo_pb2

from serving.domain import Classification, ClassifyReply, ClassifyRequest, ImageInput, Surface
from serving.errors import InvalidRequest, ServingError
from serving.front.budget import budget_from_message
from serving.front.front import check_model
from serving.front.grpc.call import GrpcCall
from serving.front.grpc.messages import check_id, message_from_error, message_from_report
from serving.front.grpc.registration import VIREO
from serving.front.grpc.rpc import Rpc
from serving.limits import IngressLimits
from serving.tasks.classification import check_num_images, check_top_k, reply_to


async def classify(call: GrpcCall, message: vireo_pb2.ClassifyRequest) -> vireo_pb2.ClassifyResponse:
    """``vireo.v1.Vireo/Classify``, and each request of ``ClassifyStream``."""
    reply = await reply_to(call, request_from_message(message, call))
    return message_from_reply(reply, message.id)


def request_from_message(message: vireo_pb2.ClassifyRequest, call: GrpcCall) -> ClassifyRequest:
    """Return the request. Raises: ClientError."""
    limits = call.front.limits
    check_id(message.id)
    model = check_model(message.model or None)
    if not message.images:
        raise InvalidRequest("images is empty; send at least one image", param="images")
    check_num_images(len(message.images), limits, "images")
    check_top_k(message.top_k or 1, limits)
    return ClassifyRequest(
        request_id=call.request_id,
        surface=call.surface,
        tenant=call.tenant,
        model=model,
        images=tuple(ImageInput(encoded=data) for data in message.images),
        top_k=message.top_k or 1,
        budget=budget_from_message(message.vireo),
        deadline_s=call.deadline_s(),
    )


def message_from_reply(reply: ClassifyReply, id: str) -> vireo_pb2.ClassifyResponse:
    """Return the answer of a call that has at least one result."""
    return vireo_pb2.ClassifyResponse(
        model=reply.model,
        results=[_result(index, item) for index, item in enumerate(reply.items)],
        vireo=message_from_report(reply.report),
        id=id,
    )


def _result(index: int, item: Classification | ServingError) -> vireo_pb2.ClassifyResult:
    if isinstance(item, ServingError):
        return vireo_pb2.ClassifyResult(index=index, error=message_from_error(item))
    return vireo_pb2.ClassifyResult(
        index=index,
        label=item.label,
        score=item.score,
        exit=item.exit,
        top_k=[vireo_pb2.LabelScore(label=entry.label, score=entry.score) for entry in item.top_k],
    )


def _refusal(id: str, error: ServingError) -> vireo_pb2.ClassifyResponse:
    return vireo_pb2.ClassifyResponse(id=id, error=message_from_error(error))


def _max_bytes(limits: IngressLimits) -> int:
    return limits.max_message_bytes(has_pixels=False)


RPCS: Final = (
    Rpc(
        method=VIREO.methods_by_name["Classify"],
        answer=classify,
        surface=Surface.GRPC_VIREO,
        max_bytes=_max_bytes,
    ),
    Rpc(
        method=VIREO.methods_by_name["ClassifyStream"],
        answer=classify,
        surface=Surface.GRPC_VIREO_STREAM,
        max_bytes=_max_bytes,
        refusal=_refusal,
    ),
)
