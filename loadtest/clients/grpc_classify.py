"""``vireo.v1.Vireo`` over gRPC: one call per request, or all requests on one bidirectional stream per tenant."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

import grpc
from vireo_pb.vireo.v1 import vireo_pb2

from loadtest.clients.base import Budget, Payload, Prepared, Reply
from loadtest.clients.grpc_base import GrpcCallClient, GrpcChannel
from loadtest.clients.outcomes import Answer, WrongAnswer, outcome_of_error_type, outcome_of_items, short
from loadtest.records import Outcome, ServerReport

_UNARY = "/vireo.v1.Vireo/Classify"
_STREAM = "/vireo.v1.Vireo/ClassifyStream"


class GrpcClassifyClient(GrpcCallClient):
    """Unary ``Classify``."""

    def _bind(self, channel: GrpcChannel) -> Any:
        return channel.unary(_UNARY, vireo_pb2.ClassifyResponse.FromString)

    def prepare(self, payload: Payload) -> Prepared:
        """The serialised request."""
        return _prepare(payload)

    async def send(self, prepared: Prepared) -> Reply:
        """Call and wait; every failure of the target is a ``Reply``."""
        payload = prepared.payload
        try:
            response = await self._call(prepared.wire, metadata=self._channel.metadata(payload.tenant))
        except grpc.aio.AioRpcError as error:
            return self._channel.failed(error)
        return self._channel.answered(lambda: _read(response, payload), response.ByteSize())


class GrpcStreamClient:
    """``ClassifyStream``: one stream per tenant, opened at need, requests matched to answers by id."""

    def __init__(
        self,
        address: str,
        *,
        api_keys: Mapping[str, str] | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._channel = GrpcChannel(address, api_keys=api_keys, now_s=now_s)
        self._streams: dict[str, _Stream] = {}

    async def start(self) -> None:
        """Connect. Raises: TargetError."""
        await self._channel.open()

    def prepare(self, payload: Payload) -> Prepared:
        """The serialised request, still without an id."""
        return _prepare(payload)

    async def send(self, prepared: Prepared) -> Reply:
        """Write to the stream and wait for the answer with the same id."""
        payload = prepared.payload
        stream = self._streams.get(payload.tenant)
        if stream is None or stream.is_ended:
            call = self._channel.stream(_STREAM, vireo_pb2.ClassifyResponse.FromString)
            stream = _Stream(call(metadata=self._channel.metadata(payload.tenant)))
            self._streams[payload.tenant] = stream
        try:
            response = await stream.exchange(prepared.wire)
        except grpc.aio.AioRpcError as error:
            return self._channel.failed(error)
        except _StreamEnded as error:
            return Reply(outcome=Outcome.CONNECTION_ERROR, done_at_s=self._channel.now_s(), error_message=short(error))
        return self._channel.answered(lambda: _read(response, payload), response.ByteSize())

    async def close(self) -> None:
        """End the streams, close the channel."""
        for stream in self._streams.values():
            await stream.close()
        self._streams.clear()
        await self._channel.close()


class _StreamEnded(Exception):
    """The server ended the stream with answers outstanding."""


class _Stream:
    """One open stream: writes in turn, a reader that hands each answer to who waits for it."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._ids = count()
        self._waiting: dict[str, asyncio.Future[Any]] = {}
        self._write_turn = asyncio.Lock()
        self._writes: set[asyncio.Task[None]] = set()
        self._reader = asyncio.get_running_loop().create_task(self._read())

    @property
    def is_ended(self) -> bool:
        return self._reader.done()

    async def exchange(self, wire: bytes) -> Any:
        request_id = str(next(self._ids))
        waiter = self._waiting[request_id] = asyncio.get_running_loop().create_future()
        try:
            await self._write(wire + vireo_pb2.ClassifyRequest(id=request_id).SerializeToString())
            return await waiter
        finally:
            del self._waiting[request_id]

    async def close(self) -> None:
        self._call.cancel()
        self._reader.cancel()
        await asyncio.gather(self._reader, *self._writes, return_exceptions=True)

    async def _write(self, data: bytes) -> None:
        """A write that goes on when its caller is cancelled: half a write would end the stream of the others."""
        write = asyncio.get_running_loop().create_task(self._write_in_turn(data))
        self._writes.add(write)
        write.add_done_callback(self._writes.discard)
        try:
            await asyncio.shield(write)
        except asyncio.InvalidStateError as error:
            raise _StreamEnded("the stream has ended") from error

    async def _write_in_turn(self, data: bytes) -> None:
        async with self._write_turn:
            await self._call.write(data)

    async def _read(self) -> None:
        end: Exception = _StreamEnded("the server ended the stream")
        try:
            async for response in self._call:
                waiter = self._waiting.get(response.id)
                if waiter is not None and not waiter.done():
                    waiter.set_result(response)
        except grpc.aio.AioRpcError as error:
            end = error
        for waiter in self._waiting.values():
            if not waiter.done():
                waiter.set_exception(end)


def _prepare(payload: Payload) -> Prepared:
    request = vireo_pb2.ClassifyRequest(model=payload.model, images=payload.images, top_k=payload.top_k)
    if payload.budget is not None:
        request.vireo.CopyFrom(budget_to_proto(payload.budget))
    wire = request.SerializeToString()
    return Prepared(payload=payload, wire=wire, request_bytes=len(wire))


def budget_to_proto(budget: Budget) -> vireo_pb2.Budget:
    """The fields that are set."""
    fields: dict[str, Any] = budget.to_json()
    if "priority" in fields:
        fields["priority"] = vireo_pb2.Priority.Value(f"PRIORITY_{str(fields['priority']).upper()}")
    return vireo_pb2.Budget(**fields)


_FIELDS = {bool: "bool_value", int: "int_value", float: "double_value", str: "string_value"}


def set_settings(budget: Any, settings: Mapping[str, bool | int | float | str]) -> None:
    """Put settings of the model into a ``vireo_pb2.Budget``."""
    for name, value in settings.items():
        setattr(budget.settings[name], _FIELDS[type(value)], value)


def _read(response: Any, payload: Payload) -> Answer:
    """Raises: WrongAnswer: if there is not one result for each image."""
    if response.HasField("error"):
        error = response.error
        return Answer(
            outcome=outcome_of_error_type(error.type), error_code=error.code, error_message=short(error.message)
        )
    if len(response.results) != len(payload.images):
        raise WrongAnswer(f"{len(response.results)} results for {len(payload.images)} images")
    errors = [result.error if result.HasField("error") else None for result in response.results]
    first = next((error for error in errors if error is not None), None)
    return Answer(
        outcome=outcome_of_items([None if error is None else error.type for error in errors]),
        labels=tuple(None if result.HasField("error") else result.label for result in response.results),
        exits=tuple(result.exit for result in response.results if not result.HasField("error")),
        # proto3 cannot tell an absent number from 0, so a response without a report gives none.
        server=report_from_proto(response.vireo) if response.HasField("vireo") else ServerReport(),
        error_code=None if first is None else first.code,
        error_message=None if first is None else short(first.message),
    )


def report_from_proto(report: vireo_pb2.Report) -> ServerReport:
    """The report's fields; an empty text is absent."""
    return ServerReport(
        operating_point=report.operating_point or None,
        energy_j=report.energy_j if report.HasField("energy_j") else None,
        energy_source=report.energy_source or None,
        queue_ms=report.queue_ms,
        compute_ms=report.compute_ms,
        cache=report.cache or None,
        degraded=tuple(report.degraded),
    )
