"""What the gRPC clients share: the channel, the metadata, and the end of a call as a ``Reply``.

Requests are serialised before the run; the channel is given plain bytes.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import grpc

from loadtest.clients.base import NobodyThere, Reply, TargetError, bearer
from loadtest.clients.outcomes import Answer, ErrorBody, WrongAnswer, outcome_of_grpc, read_error_object, short
from loadtest.records import Outcome

MAX_MESSAGE_BYTES = 256 * 2**20
ERROR_TRAILER = "vireo-error-bin"
"""Trailer with the error object as JSON (docs/api.md)."""
RETRY_TRAILER = "retry-after-ms"


class GrpcChannel:
    """One channel to one address, shared by the calls of a client."""

    def __init__(
        self,
        address: str,
        *,
        api_keys: Mapping[str, str] | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = address
        self._metadata = {
            tenant: (("authorization", bearer(api_keys or {}, tenant) or ""),) for tenant in api_keys or {}
        }
        self._channel: grpc.aio.Channel | None = None
        self.now_s = now_s

    async def open(self, *, timeout_s: float = 10.0) -> None:
        """Connect. Raises: TargetError: if nobody answers in time."""
        options = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.max_send_message_length", -1)]
        self._channel = grpc.aio.insecure_channel(self._address, options=options)
        try:
            async with asyncio.timeout(timeout_s):
                await self._channel.channel_ready()
        except TimeoutError:
            await self.close()
            raise NobodyThere(f"no gRPC server answers at {self._address} within {timeout_s} s") from None

    async def close(self) -> None:
        """Close the channel and the calls on it."""
        if self._channel is not None:
            await self._channel.close(None)
            self._channel = None

    def unary(self, path: str, parse: Callable[[bytes], Any]) -> Any:
        """A unary call that takes serialised requests. Raises: TargetError: before ``open``."""
        return self._opened().unary_unary(path, request_serializer=_identity, response_deserializer=parse)

    def stream(self, path: str, parse: Callable[[bytes], Any]) -> Any:
        """A bidirectional call that takes serialised requests. Raises: TargetError: before ``open``."""
        return self._opened().stream_stream(path, request_serializer=_identity, response_deserializer=parse)

    def server_stream(self, path: str, parse: Callable[[bytes], Any]) -> Any:
        """A call with one serialised request and many answers. Raises: TargetError: before ``open``."""
        return self._opened().unary_stream(path, request_serializer=_identity, response_deserializer=parse)

    def metadata(self, tenant: str) -> tuple[tuple[str, str], ...]:
        """The API key of a tenant, as metadata."""
        return self._metadata.get(tenant, ())

    def answered(self, read: Callable[[], Answer], response_bytes: int) -> Reply:
        """The reply of a call that succeeded now; ``read`` reads it and may raise WrongAnswer."""
        done_s = self.now_s()
        try:
            answer = read()
        except WrongAnswer as error:
            answer = Answer(outcome=Outcome.PROTOCOL_ERROR, error_message=short(error))
        return Reply(
            outcome=answer.outcome,
            done_at_s=done_s,
            first_chunk_at_s=done_s,  # the API of gRPC hands over whole messages only
            status="OK",
            error_code=answer.error_code,
            error_message=answer.error_message,
            response_bytes=response_bytes,
            labels=answer.labels,
            exits=answer.exits,
            server=answer.server,
            generated=answer.generated,
        )

    def failed(self, error: grpc.aio.AioRpcError) -> Reply:
        """The reply of a call that ended with a status now."""
        trailers = dict(cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ()))
        details = _error_details(trailers.get(ERROR_TRAILER))
        status = error.code().name
        return Reply(
            outcome=outcome_of_grpc(status, details.type),
            done_at_s=self.now_s(),
            status=status,
            error_code=details.code,
            error_message=short(error.details()),
            retry_after_s=_milliseconds(trailers.get(RETRY_TRAILER)),
        )

    def _opened(self) -> grpc.aio.Channel:
        if self._channel is None:
            raise TargetError("the gRPC channel is not open; call start() first")
        return self._channel


class GrpcCallClient:
    """What a client of one method has: a channel, and the method on it once ``start`` is through."""

    def __init__(
        self,
        address: str,
        *,
        api_keys: Mapping[str, str] | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._channel = GrpcChannel(address, api_keys=api_keys, now_s=now_s)
        self._call: Any = None

    async def start(self) -> None:
        """Connect. Raises: TargetError."""
        await self._channel.open()
        self._call = self._bind(self._channel)

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    def _bind(self, channel: GrpcChannel) -> Any:
        """The method, on an open channel."""
        raise NotImplementedError


def _identity(data: bytes) -> bytes:
    return data


def _error_details(trailer: str | bytes | None) -> ErrorBody:
    """The error object of a trailer; empty if there is none or if it is no JSON object."""
    try:
        fields = json.loads(trailer or b"null")
    except ValueError:
        return ErrorBody()
    return read_error_object(fields) if isinstance(fields, dict) else ErrorBody()


def _milliseconds(trailer: str | bytes | None) -> float | None:
    try:
        return None if trailer is None else float(trailer) / 1e3
    except ValueError:
        return None
