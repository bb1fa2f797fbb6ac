"""One gRPC call: who calls, and how its end is told.

Errors are never raised to Ray Serve, which would log a traceback for each bad request: the status and the details are
set on the context and an empty message is returned, which gRPC drops when the status is not OK.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog
from grpc import StatusCode

from serving.errors import InvalidRequest, ServingError
from serving.front.front import Front, request_id
from serving.front.status import grpc_trailers, message_of, status_of, to_serving_error
from serving.telemetry.events import UNKNOWN

REQUEST_ID_TRAILER = "x-request-id"
_READ = ("authorization", "x-api-key", "x-request-id")


class GrpcContext(Protocol):
    """The part of a gRPC context that is used. Both Ray Serve's and ``grpc.aio``'s have it."""

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]] | None:
        """Metadata that the client sent."""
        ...

    def peer(self) -> str:
        """Address of the caller, for example ``ipv4:127.0.0.1:1234``."""
        ...

    def set_code(self, code: StatusCode) -> None:
        """Set the status."""
        ...

    def set_details(self, details: str) -> None:
        """Set the status message."""
        ...

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        """Set the trailers."""
        ...


@dataclass(slots=True)
class GrpcCall:
    """A call before its caller is known."""

    context: GrpcContext
    metadata: dict[str, str] = field(default_factory=dict)
    request_id: str = ""
    tenant: str = UNKNOWN

    def __post_init__(self) -> None:
        for key, value in self.context.invocation_metadata() or ():
            if key in _READ and isinstance(value, str):
                self.metadata[key] = value
        self.request_id = request_id(self.metadata.get("x-request-id"))
        self.context.set_trailing_metadata([(REQUEST_ID_TRAILER, self.request_id)])

    def authenticate(self, front: Front) -> None:
        """Find the tenant. Raises: Unauthenticated, Forbidden, InvalidRequest."""
        limit = front.limits.max_header_value_bytes
        for key, value in self.metadata.items():
            if len(value) > limit:
                raise InvalidRequest(f"metadata {key} has {len(value)} bytes; the limit is {limit}", param=key)
        self.tenant = front.authenticator.authenticate(
            self.metadata.get("authorization"), self.metadata.get("x-api-key"), self.context.peer()
        )

    def deadline_s(self) -> float | None:
        """Return the caller's deadline on the monotonic clock, if the context knows it. Ray Serve's does not: there,
        gRPC itself cancels the call at its deadline."""
        time_remaining = getattr(self.context, "time_remaining", None)
        remaining_s = time_remaining() if time_remaining is not None else None
        return None if remaining_s is None else time.monotonic() + remaining_s

    def known(self, error: Exception) -> ServingError:
        """Return the error as the caller may see it; log it if it is not one of ours."""
        known = to_serving_error(error)
        if known is not error:
            structlog.get_logger(__name__).error("request_failed", request_id=self.request_id, exc_info=error)
        return known

    def fail(self, error: ServingError) -> None:
        """End the call with an error."""
        self.context.set_code(status_of(error).grpc)
        self.context.set_details(message_of(error))
        self.context.set_trailing_metadata([(REQUEST_ID_TRAILER, self.request_id), *grpc_trailers(error)])
