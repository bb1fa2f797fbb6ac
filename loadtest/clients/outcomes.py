"""From what a server said to an ``Outcome``: the tables for HTTP and gRPC, and the reading of Vireo's JSON answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loadtest.clients.base import MAX_ERROR_CHARS
from loadtest.records import Generated, Outcome, ServerReport


class WrongAnswer(Exception):
    """A successful answer that does not follow the API."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The part of a successful answer that a record keeps."""

    outcome: Outcome
    labels: tuple[str | None, ...] = ()
    exits: tuple[int, ...] = ()
    server: ServerReport | None = None
    error_code: str | None = None
    error_message: str | None = None
    generated: Generated | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorBody:
    """What an error says of itself."""

    code: str | None = None
    message: str | None = None
    type: str | None = None


_HTTP_OUTCOMES = {
    408: Outcome.DEADLINE_EXCEEDED,
    429: Outcome.REJECTED,
    499: Outcome.CANCELLED,
    502: Outcome.UNAVAILABLE,
    503: Outcome.UNAVAILABLE,
    504: Outcome.DEADLINE_EXCEEDED,
}

_GRPC_OUTCOMES = {
    "OK": Outcome.OK,
    "CANCELLED": Outcome.CANCELLED,
    "DEADLINE_EXCEEDED": Outcome.DEADLINE_EXCEEDED,
    "RESOURCE_EXHAUSTED": Outcome.REJECTED,
    "UNAVAILABLE": Outcome.UNAVAILABLE,
    "INVALID_ARGUMENT": Outcome.CLIENT_ERROR,
    "NOT_FOUND": Outcome.CLIENT_ERROR,
    "ALREADY_EXISTS": Outcome.CLIENT_ERROR,
    "PERMISSION_DENIED": Outcome.CLIENT_ERROR,
    "UNAUTHENTICATED": Outcome.CLIENT_ERROR,
    "FAILED_PRECONDITION": Outcome.CLIENT_ERROR,
    "OUT_OF_RANGE": Outcome.CLIENT_ERROR,
    "UNIMPLEMENTED": Outcome.CLIENT_ERROR,
}


_ERROR_TYPES = {
    "server_error": Outcome.SERVER_ERROR,
    "timeout_error": Outcome.DEADLINE_EXCEEDED,
    "rate_limit_error": Outcome.REJECTED,
    "cancelled_error": Outcome.CANCELLED,
}

_MILDEST_FIRST = (
    Outcome.CLIENT_ERROR,
    Outcome.REJECTED,
    Outcome.DEADLINE_EXCEEDED,
    Outcome.CANCELLED,
    Outcome.SERVER_ERROR,
)


def outcome_of_http(status: int, error_type: str | None = None) -> Outcome:
    """The outcome that an HTTP status stands for. 3xx is a protocol error: no path of the API redirects.

    503 is "not now" or "not there"; the ``type`` of the error body tells them apart.
    """
    if 200 <= status < 300:
        return Outcome.OK
    if status == 503 and error_type == "rate_limit_error":
        return Outcome.REJECTED
    if status in _HTTP_OUTCOMES:
        return _HTTP_OUTCOMES[status]
    if 400 <= status < 500:
        return Outcome.CLIENT_ERROR
    return Outcome.SERVER_ERROR if status >= 500 else Outcome.PROTOCOL_ERROR


def outcome_of_grpc(status: str, error_type: str | None = None) -> Outcome:
    """The outcome that a gRPC status name stands for; UNAVAILABLE is told apart as 503 is."""
    if status == "UNAVAILABLE" and error_type == "rate_limit_error":
        return Outcome.REJECTED
    return _GRPC_OUTCOMES.get(status, Outcome.SERVER_ERROR)


def outcome_of_error_type(error_type: str | None) -> Outcome:
    """The outcome that the ``type`` of an error inside an answer stands for."""
    return _ERROR_TYPES.get(error_type or "", Outcome.CLIENT_ERROR)


def outcome_of_items(error_types: Sequence[str | None]) -> Outcome:
    """The outcome of an answer with one entry per image: the type of its error, or ``None`` if it was answered.

    If all images failed in different ways, the gravest counts.
    """
    failed = [error_type for error_type in error_types if error_type is not None]
    if not failed:
        return Outcome.OK
    if len(failed) < len(error_types):
        return Outcome.PARTIAL
    return max((outcome_of_error_type(error_type) for error_type in failed), key=_MILDEST_FIRST.index)


def read_classify_json(body: Any, num_images: int) -> Answer:
    """Read the body of a successful ``POST /v1/classify``.

    Raises: WrongAnswer: if it is not one result or one error for each of ``num_images`` images.
    """
    try:
        results = body["results"]
        if len(results) != num_images:
            raise WrongAnswer(f"{len(results)} results for {num_images} images")
        errors = [result.get("error") or None for result in results]
        return Answer(
            outcome=outcome_of_items([None if error is None else str(error.get("type")) for error in errors]),
            labels=tuple(None if result.get("error") else str(result["label"]) for result in results),
            exits=tuple(int(result["exit"]) for result in results if not result.get("error")),
            server=read_report(body["vireo"]),
            error_code=next((str(error.get("code")) for error in errors if error), None),
            error_message=next((short(error.get("message")) for error in errors if error), None),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise WrongAnswer(f"not a classify answer: {type(error).__name__} {error}") from error


def read_report(block: Mapping[str, Any]) -> ServerReport:
    """Read a ``vireo`` block. A field that is absent stays ``None``. Raises: TypeError, ValueError: on a wrong type."""
    return ServerReport(
        operating_point=_text(block.get("operating_point")),
        energy_j=_number(block.get("energy_j")),
        energy_source=_text(block.get("energy_source")),
        queue_ms=_number(block.get("queue_ms")),
        compute_ms=_number(block.get("compute_ms")),
        cache=_text(block.get("cache")),
        degraded=tuple(str(item) for item in block.get("degraded") or ()),
    )


def read_error_json(body: Any) -> ErrorBody:
    """Read an error body; what it does not say stays ``None``."""
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, str):  # the Open Inference Protocol's; Vireo has the rest beside it
        return read_error_object({**body, "message": error})
    return read_error_object(error) if isinstance(error, dict) else ErrorBody()


def read_error_object(error: Mapping[str, Any]) -> ErrorBody:
    """Read the object that describes an error on every surface."""
    return ErrorBody(code=_text(error.get("code")), message=short(error.get("message")), type=_text(error.get("type")))


def short(message: Any) -> str | None:
    """A message cut to the length that a record keeps."""
    return None if message is None else str(message)[:MAX_ERROR_CHARS]


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
