"""The one place that knows which HTTP and gRPC status an error has, and how an error is spelt on the wire.

Whatever is not a ``ServingError`` becomes the same plain internal error: no internal text reaches a caller.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import orjson
from grpc import StatusCode
from typing_extensions import TypedDict

from serving import errors
from serving.errors import ServingError

MAX_MESSAGE_BYTES = 1024
"""Longest message sent. gRPC has it in the trailers twice, once with three bytes for each not in ASCII, and clients
take 8 KiB of trailers by default."""

MAX_PARAM_BYTES = 128

DEFAULT_RETRY_S = 1.0
ERROR_TRAILER = "vireo-error-bin"
RETRY_TRAILER = "retry-after-ms"

_INTERNAL_MESSAGE = "internal error. Retry; if it stays, report the request id, under which the server has logged it"


class ErrorObject(TypedDict):
    """What describes an error on every surface."""

    code: str
    message: str
    type: str
    param: str | None


class ErrorAnswer(TypedDict):
    """Answer of every failed HTTP request but those below ``/v2``."""

    error: ErrorObject


class InferErrorAnswer(TypedDict):
    """Answer of every failed request below ``/v2``: the Open Inference Protocol has a text there; ours is beside it."""

    error: str
    code: str
    type: str
    param: str | None


def error_shape(path: str) -> type[ErrorAnswer] | type[InferErrorAnswer]:
    """The class of an error answer, by the path that was asked for."""
    return InferErrorAnswer if path == "/v2" or path.startswith("/v2/") else ErrorAnswer


@dataclass(frozen=True, slots=True)
class Status:
    """How one kind of error is answered. ``retryable``: the same request may succeed later."""

    http: int
    grpc: StatusCode
    retryable: bool = False


_BAD = Status(400, StatusCode.INVALID_ARGUMENT)
_FULL = Status(429, StatusCode.RESOURCE_EXHAUSTED, retryable=True)
_AWAY = Status(503, StatusCode.UNAVAILABLE, retryable=True)
_BROKEN = Status(500, StatusCode.INTERNAL)

TABLE: Final[Mapping[type[ServingError], Status]] = MappingProxyType(
    {
        errors.ClientError: _BAD,
        errors.InvalidRequest: _BAD,
        errors.UnknownField: _BAD,
        errors.UnsupportedField: _BAD,
        errors.UnsupportedVideo: _BAD,
        errors.IdempotencyKeyReused: Status(422, StatusCode.FAILED_PRECONDITION),
        errors.PromptTooLong: _BAD,
        errors.InvalidImage: _BAD,
        errors.UnsupportedMediaType: Status(415, StatusCode.INVALID_ARGUMENT),
        errors.ImageTooLarge: Status(413, StatusCode.INVALID_ARGUMENT),
        errors.DecodeTimeout: _BAD,
        errors.ImageUrlRefused: _BAD,
        errors.ImageFetchFailed: _BAD,
        errors.PayloadTooLarge: Status(413, StatusCode.INVALID_ARGUMENT),
        errors.TooManyImages: _BAD,
        errors.UnknownModel: Status(404, StatusCode.NOT_FOUND),
        errors.UnknownImage: Status(404, StatusCode.NOT_FOUND),
        errors.ImageNotReady: Status(409, StatusCode.FAILED_PRECONDITION),
        errors.ImageFailed: Status(409, StatusCode.FAILED_PRECONDITION),
        errors.UnknownVideo: Status(404, StatusCode.NOT_FOUND),
        errors.VideoNotReady: Status(409, StatusCode.FAILED_PRECONDITION),
        errors.VideoFailed: Status(409, StatusCode.FAILED_PRECONDITION),
        errors.RangeNotSatisfiable: Status(416, StatusCode.OUT_OF_RANGE),
        errors.UnknownPath: Status(404, StatusCode.UNIMPLEMENTED),
        errors.UnknownService: Status(404, StatusCode.NOT_FOUND),
        errors.MethodNotAllowed: Status(405, StatusCode.UNIMPLEMENTED),
        errors.UnsupportedEncoding: Status(415, StatusCode.UNIMPLEMENTED),
        errors.Unauthenticated: Status(401, StatusCode.UNAUTHENTICATED),
        errors.Forbidden: Status(403, StatusCode.PERMISSION_DENIED),
        errors.FeatureNotAllowed: Status(403, StatusCode.PERMISSION_DENIED),
        errors.BudgetInfeasible: Status(422, StatusCode.FAILED_PRECONDITION),
        errors.QuotaTooSmall: Status(422, StatusCode.FAILED_PRECONDITION),
        errors.DeadlineExceeded: Status(504, StatusCode.DEADLINE_EXCEEDED),
        errors.SlowBody: Status(408, StatusCode.DEADLINE_EXCEEDED),
        errors.Overloaded: _FULL,
        errors.QueueFull: _FULL,
        errors.DeadlineUnreachable: _FULL,
        errors.QuotaExceeded: _FULL,
        errors.SpendCapReached: _FULL,
        errors.TooManyInFlight: _FULL,
        errors.TooManyJobs: _FULL,
        errors.TooManyBytes: _FULL,
        errors.TooManyLatentBytes: _FULL,
        errors.DeepShareSpent: _FULL,
        errors.Draining: _AWAY,
        errors.NotReady: _AWAY,
        errors.Cancelled: Status(499, StatusCode.CANCELLED),
        errors.BackendError: _BROKEN,
        errors.EngineFailed: _BROKEN,
        errors.ReplicaLost: _AWAY,
        errors.RetriesSpent: _AWAY,
        errors.AccountUnavailable: _AWAY,
        errors.StoreUnavailable: _AWAY,
        errors.StoreFull: _AWAY,
        errors.ServingError: _BROKEN,
    }
)


def status_of(error: ServingError) -> Status:
    """Look up the status of an error; a class that is not in the table has that of its nearest parent."""
    return next(TABLE[cls] for cls in type(error).__mro__ if cls in TABLE)


def to_serving_error(error: BaseException) -> ServingError:
    """Return the error itself if it is meant for callers, and a plain internal error otherwise."""
    return error if isinstance(error, ServingError) else errors.BackendError(_INTERNAL_MESSAGE)


def message_of(error: ServingError) -> str:
    """Return the message as it may be sent: valid Unicode, of bounded length."""
    return _bounded(error.message, MAX_MESSAGE_BYTES)


def _bounded(text: str, max_bytes: int) -> str:
    if len(text) <= max_bytes and text.isascii():
        return text
    data = text[:max_bytes].encode("utf-8", "backslashreplace")
    if len(data) <= max_bytes and len(text) <= max_bytes:
        return data.decode()
    return data[: max_bytes - 3].decode("utf-8", "ignore") + "..."


def retry_after_s(error: ServingError) -> float | None:
    """Return when a retry makes sense, or None when it does not."""
    if not status_of(error).retryable:
        return None
    wait_s = error.retry_after_s
    return DEFAULT_RETRY_S if wait_s is None or not math.isfinite(wait_s) or wait_s < 0 else wait_s


def error_object(error: ServingError) -> ErrorObject:
    """Return an error as every surface spells it."""
    return {"code": error.code, "message": message_of(error), "type": error.type, "param": param_of(error)}


def error_body(error: ServingError, path: str = "") -> bytes:
    """Return the body of an answer that is an error, as it is spelt below a path."""
    one = error_object(error)
    if error_shape(path) is ErrorAnswer:
        return orjson.dumps({"error": one})
    return orjson.dumps({"error": one.pop("message"), **one})  # type: ignore[misc]


def param_of(error: ServingError) -> str | None:
    """Return the field at fault as it may be sent, or None."""
    return None if error.param is None else _bounded(error.param, MAX_PARAM_BYTES)


def http_error(error: ServingError, path: str = "") -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Return (status, extra headers, JSON body) of an error answer below a path."""
    headers: list[tuple[bytes, bytes]] = []
    if (wait_s := retry_after_s(error)) is not None:
        headers.append((b"retry-after", str(max(1, math.ceil(wait_s))).encode()))
    if isinstance(error, errors.Unauthenticated):
        headers.append((b"www-authenticate", b'Bearer realm="vireo"'))
    if isinstance(error, errors.SlowBody):
        headers.append((b"connection", b"close"))
    return status_of(error).http, headers, error_body(error, path)


def grpc_trailers(error: ServingError) -> list[tuple[str, str | bytes]]:
    """Return the trailing metadata that goes with an error's status: the error as JSON, and when to retry."""
    trailers: list[tuple[str, str | bytes]] = [(ERROR_TRAILER, orjson.dumps(error_object(error)))]
    if (wait_s := retry_after_s(error)) is not None:
        trailers.append((RETRY_TRAILER, str(math.ceil(wait_s * 1e3))))
    return trailers
