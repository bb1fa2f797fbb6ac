"""The messages of a method as they are read (late, bounded, counted, and only then parsed), and what those of
``vireo.v1`` have in common: an id, an error, a report.

Methods get bytes, and when they ask for them (``grpc_registration``). Whoever reads one has authenticated its caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import suppress
from dataclasses import asdict
from typing import Generic, TypeAlias, TypeVar, cast

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message
from vireo_pb.vireo.v1 import vireo_pb2

from serving.domain import Report
from serving.errors import Cancelled, InvalidRequest, PayloadTooLarge, ServingError, SlowBody
from serving.front.grpc.protobuf_walk import check, id_of, plan_of
from serving.front.status import message_of, param_of, retry_after_s
from serving.limits import MAX_ID_CHARS, IngressLimits

Request = TypeVar("Request", bound=Message)

RawRequests: TypeAlias = AsyncIterable[bytes]
"""What a client sends, message by message, each received no sooner than it is asked for."""


class Reader(Generic[Request]):
    """Reads the requests of one method, of at most ``max_bytes`` each."""

    def __init__(self, kind: type[Request], max_bytes: int, limits: IngressLimits) -> None:
        self._kind = kind
        self._max_bytes = max_bytes
        self._limits = limits
        self._plan = plan_of(cast(Descriptor, kind.DESCRIPTOR))

    async def only(self, requests: RawRequests) -> Request:
        """Return the one request of a unary call.

        Raises:
            SlowBody: it was not there to its end in time.
            Cancelled: the client went away.
            PayloadTooLarge, InvalidRequest: as ``parse``, or there is not exactly one.
        """
        first, num_received = b"", 0
        try:
            async with asyncio.timeout(self._limits.body_timeout_s):
                async for data in requests:  # to the end: gRPC holds the last message until it is asked for another
                    first, num_received = first or data, num_received + 1
        except TimeoutError:
            raise self._late() from None
        if num_received == 1:
            return self.parse(first)
        if is_cancelled(requests):
            raise Cancelled("the client went away before it had sent its message")
        raise InvalidRequest(f"the call has {num_received} messages; send one {self._kind.DESCRIPTOR.name}")

    async def each(self, requests: RawRequests) -> AsyncGenerator[Request, None]:
        """Yield the requests of a stream that is not left open. Raises: SlowBody, and as ``parse``."""
        try:
            while True:
                try:
                    async with asyncio.timeout(self._limits.body_timeout_s):
                        data = await anext(aiter(requests), None)
                except TimeoutError:
                    raise self._late() from None
                if data is None:
                    return
                yield self.parse(data)
        finally:
            await let_go(requests)

    def _late(self) -> SlowBody:
        timeout_s = self._limits.body_timeout_s
        return SlowBody(f"the message did not arrive in {timeout_s:g} s, the limit; send it faster, or less")

    def parse(self, data: bytes) -> Request:
        """Return a request.

        Raises:
            PayloadTooLarge: it is longer than this method takes.
            UnknownField, InvalidRequest: as ``protobuf_walk.check``.
        """
        if len(data) > self._max_bytes:
            raise PayloadTooLarge(
                f"the message has {len(data)} bytes; the limit of this method is {self._max_bytes}. Send less"
            )
        check(data, self._plan, self._limits)
        try:
            return self._kind.FromString(data)
        except DecodeError:  # a text that is not UTF-8
            raise InvalidRequest(
                f"the message is no valid {self._kind.DESCRIPTOR.name}; encode it with the published .proto files, and "
                "texts as UTF-8"
            ) from None

    def id_of(self, data: bytes) -> str:
        """Return the caller's name of a request that may be refused, cut to what is echoed."""
        return id_of(data, self._plan, self._limits)[:MAX_ID_CHARS]


async def let_go(requests: AsyncIterable[object]) -> None:
    """Have gRPC forget the last message of a stream that is not read to its end.

    Its generator stands where it gave the message out, in a cycle of references: megabytes would stay until the garbage
    collector comes by. Asked for another message and cancelled, it ends.
    """
    with suppress(Exception):
        async with asyncio.timeout(0):
            await anext(aiter(requests))


def is_cancelled(requests: object) -> bool:
    """Whether the client has gone, as far as the stream can say (Ray Serve's can)."""
    gone = getattr(requests, "is_cancelled", None)
    return bool(gone and gone())


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
    guard = vireo_pb2.Guard(
        score=report.guard.get("score"),
        action=report.guard.get("action", ""),
        reasons=report.guard.get("reasons", ()),
    )
    return vireo_pb2.Report(
        operating_point=report.operating_point,
        energy_j=report.energy_j,
        energy_source=report.energy_source,
        queue_ms=report.queue_ms,
        compute_ms=report.compute_ms,
        cache=report.cache,
        degraded=report.degraded,
        guard=guard if report.guard else None,
        degradation=None if report.degradation is None else vireo_pb2.Degradation(**asdict(report.degradation)),
    )
