"""One gRPC call: who calls, what is read of it and when, and how its end is told.

Errors are never raised to Ray Serve, which would log a traceback for each bad request: the status and the details are
set on the context and an empty message is returned, which gRPC drops when the status is not OK.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from google.protobuf.descriptor import MethodDescriptor
from grpc import StatusCode

from serving.domain import Surface
from serving.errors import InvalidRequest, QueueFull, ServingError
from serving.front.auth import key_sent_twice
from serving.front.front import BaseCall, Front, request_id
from serving.front.grpc.health import Health
from serving.front.grpc.messages import RawRequests, Reader
from serving.front.grpc.registration import needs_key
from serving.front.status import grpc_trailers, message_of, status_of

MAX_KEYLESS_CALLS = 64
"""Calls that need no key and whose message is awaited, and streams of reflection, at a time on one replica: each holds
a slot of the replica."""

REQUEST_ID_TRAILER = "x-request-id"
_KEYS = ("authorization", "x-api-key")
_READ = (*_KEYS, "x-request-id", "traceparent")


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
class Door:
    """What the methods of one replica share."""

    front: Front
    health: Health
    readers: dict[str, Reader[Any]] = field(default_factory=dict)
    """By the full name of a method."""
    num_keyless: int = 0

    def begin(self, context: GrpcContext, surface: Surface | None = None) -> GrpcCall:
        """Open a call: read its metadata."""
        metadata: dict[str, str] = {}
        for key, value in context.invocation_metadata() or ():
            if key in _READ and isinstance(value, str):  # an id that comes twice is malformed
                metadata[key] = f"{metadata[key]}, {value}" if key in metadata else value
        accepted_id = request_id(metadata.get("x-request-id"))
        visit = self.front.begin(surface, accepted_id, metadata.get("traceparent", ""))
        call = GrpcCall(self.front, accepted_id, visit, self, context, metadata)
        context.set_trailing_metadata([(REQUEST_ID_TRAILER, call.request_id)])
        return call

    @contextmanager
    def keyless(self) -> Iterator[None]:
        """Count a call of which nobody knows who makes it. Raises: QueueFull."""
        if self.num_keyless >= MAX_KEYLESS_CALLS:
            raise QueueFull(f"{MAX_KEYLESS_CALLS} calls without a key wait for their messages here, the limit; retry")
        self.num_keyless += 1
        try:
            yield
        finally:
            self.num_keyless -= 1


@dataclass(slots=True)
class GrpcCall(BaseCall):
    """A call before its caller is known."""

    door: Door
    context: GrpcContext
    metadata: dict[str, str]

    async def receive(self, method: MethodDescriptor, requests: RawRequests) -> Any:
        """Find out who calls, where that matters, and only then read the one message of the call.

        Raises: ClientError; QueueFull: too many calls that nobody answers for.
        """
        reader = self.door.readers[method.full_name]
        if needs_key(method):
            self.authenticate()
            return await reader.only(requests)
        with self.door.keyless():
            return await reader.only(requests)

    def authenticate(self) -> None:
        """Find the tenant. Raises: Unauthenticated, Forbidden, InvalidRequest."""
        names = [key for key, _value in self.context.invocation_metadata() or ()]
        for key in _KEYS:
            if names.count(key) > 1:
                raise key_sent_twice(key)
        limit = self.front.limits.max_header_value_bytes
        for key, value in self.metadata.items():
            if len(value) > limit:
                raise InvalidRequest(f"metadata {key} has {len(value)} bytes; the limit is {limit}", param=key)
        self.visit.tenant = self.front.authenticator.authenticate(
            self.metadata.get("authorization"), self.metadata.get("x-api-key"), self.context.peer()
        )

    def deadline_s(self) -> float | None:
        """Return the caller's deadline on the monotonic clock, if the context knows it. Ray Serve's does not: there,
        gRPC itself cancels the call at its deadline."""
        time_remaining = getattr(self.context, "time_remaining", None)
        remaining_s = time_remaining() if time_remaining is not None else None
        return None if remaining_s is None else time.monotonic() + remaining_s

    def fail(self, error: Exception) -> None:
        """End the call with an error."""
        known: ServingError = self.known(error)
        self.context.set_code(status_of(known).grpc)
        self.context.set_details(message_of(known))
        self.context.set_trailing_metadata([(REQUEST_ID_TRAILER, self.request_id), *grpc_trailers(known)])
