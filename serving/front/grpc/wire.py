"""What the messages of ``vireo.v1`` have in common: a model, an id, an error, a report."""

from __future__ import annotations

from vireo_pb.vireo.v1 import vireo_pb2

from serving.domain import Report
from serving.errors import InvalidRequest, ServingError
from serving.front.status import message_of, param_of, retry_after_s
from serving.limits import MAX_ID_CHARS


def check_id(value: str) -> None:
    """Raises: InvalidRequest: the caller's id is too long to be echoed."""
    if len(value) > MAX_ID_CHARS:
        raise InvalidRequest(f"id has {len(value)} characters; the limit is {MAX_ID_CHARS}. Shorten it", param="id")


def message_from_error(error: ServingError) -> vireo_pb2.Error:
    """Return a typed error."""
    return vireo_pb2.Error(
        code=error.code,
        message=message_of(error),
        type=error.type,
        param=param_of(error) or "",
        retry_after_s=retry_after_s(error) or 0.0,
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
