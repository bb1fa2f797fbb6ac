"""``vireo.v1`` messages to domain types and back, and nothing else."""

from __future__ import annotations

from vireo_pb.vireo.v1 import vireo_pb2

from serving.domain import Budget, Classification, ClassifyReply, ClassifyRequest, ImageInput, Priority, Report, Surface
from serving.errors import InvalidRequest, ServingError
from serving.front.front import shown
from serving.front.http.schemas import MAX_ID_CHARS
from serving.front.status import message_of, param_of, retry_after_s
from serving.limits import IngressLimits
from serving.tasks.classify.body import check_num_images, check_top_k

_PRIORITIES = {
    vireo_pb2.PRIORITY_UNSPECIFIED: Priority.NORMAL,
    vireo_pb2.PRIORITY_LOW: Priority.LOW,
    vireo_pb2.PRIORITY_NORMAL: Priority.NORMAL,
    vireo_pb2.PRIORITY_HIGH: Priority.HIGH,
}


def check_id(value: str) -> None:
    """Raises: InvalidRequest: the caller's id is too long to be echoed."""
    if len(value) > MAX_ID_CHARS:
        raise InvalidRequest(f"id has {len(value)} characters; the limit is {MAX_ID_CHARS}. Shorten it", param="id")


def request_from_message(
    message: vireo_pb2.ClassifyRequest,
    *,
    surface: Surface,
    request_id: str,
    tenant: str,
    deadline_s: float | None,
    limits: IngressLimits,
) -> ClassifyRequest:
    """Return the domain request. Raises: ClientError."""
    check_id(message.id)
    if not message.model or len(message.model) > MAX_ID_CHARS:
        raise InvalidRequest(f"model is {shown(message.model)}; send a model id", param="model")
    if not message.images:
        raise InvalidRequest("images is empty; send at least one image", param="images")
    check_num_images(len(message.images), limits, "images")
    check_top_k(message.top_k or 1, limits)
    return ClassifyRequest(
        request_id=request_id,
        surface=surface,
        tenant=tenant,
        model=message.model,
        images=tuple(ImageInput(encoded=data) for data in message.images),
        top_k=message.top_k or 1,
        budget=budget_from_message(message.vireo) if message.HasField("vireo") else Budget(),
        deadline_s=deadline_s,
    )


def budget_from_message(message: vireo_pb2.Budget) -> Budget:
    """Return the budget. Raises: InvalidRequest."""
    priority = _PRIORITIES.get(message.priority)
    if priority is None:
        raise InvalidRequest(
            f"vireo.priority is {message.priority}; it must be a value of the enumeration Priority",
            param="vireo.priority",
        )
    return Budget(
        latency_ms=message.latency_ms if message.HasField("latency_ms") else None,
        energy_j=message.energy_j if message.HasField("energy_j") else None,
        priority=priority,
        quality_floor=message.quality_floor if message.HasField("quality_floor") else None,
    )


def message_from_reply(reply: ClassifyReply, id: str) -> vireo_pb2.ClassifyResponse:
    """Return the answer of a call that has at least one result."""
    return vireo_pb2.ClassifyResponse(
        model=reply.model,
        results=[_result(index, item) for index, item in enumerate(reply.items)],
        vireo=message_from_report(reply.report),
        id=id,
    )


def message_from_error(error: ServingError) -> vireo_pb2.Error:
    """Return a typed error."""
    return vireo_pb2.Error(
        code=error.code,
        message=message_of(error),
        type=error.type,
        param=param_of(error) or "",
        retry_after_s=retry_after_s(error) or 0.0,
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


def message_from_report(report: Report) -> vireo_pb2.Report:
    """Return a report."""
    guard = vireo_pb2.Guard(score=report.guard.get("score"), action=report.guard.get("action", ""))
    return vireo_pb2.Report(
        operating_point=report.operating_point,
        energy_j=report.energy_j,
        energy_source=report.energy_source,
        queue_ms=report.queue_ms,
        compute_ms=report.compute_ms,
        cache=report.cache,
        degraded=report.degraded,
        guard=guard if report.guard else None,
    )
