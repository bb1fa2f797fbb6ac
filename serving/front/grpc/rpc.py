"""One RPC: what answers it, and what all of them have in common around that.

A method is called with the metadata of its call and a stream of bytes from which nothing has been received yet
(``registration``): it authenticates first, and then reads.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from copy import copy
from dataclasses import dataclass
from typing import Any, TypeAlias

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from serving.domain import Surface
from serving.errors import ServingError
from serving.front.grpc.call import Door, GrpcCall, GrpcContext
from serving.front.grpc.messages import RawRequests, Reader
from serving.front.grpc.stream import answer_stream
from serving.limits import MAX_SMALL_BYTES, IngressLimits

Method: TypeAlias = Callable[[Any, RawRequests, GrpcContext], Any]
"""As Ray Serve calls it, by its name; ``self`` has a ``door``."""


def small(limits: IngressLimits) -> int:
    """Most bytes of a message that only names something."""
    return min(MAX_SMALL_BYTES, limits.max_body_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rpc:
    """What answers a method.

    ``answer``: (call, message) to a message, awaited; to a generator of messages where the method answers with a
    stream; to a message for each request where requests come as a stream too. ``refusal``: what answers one of those
    that failed, (id, error) to a message: the stream goes on. ``surface``: of an inference. ``max_bytes``: of one
    message.
    """

    method: MethodDescriptor
    answer: Callable[[GrpcCall, Any], Any]
    surface: Surface | None = None
    max_bytes: Callable[[IngressLimits], int] = small
    refusal: Callable[[str, ServingError], Message] | None = None

    def reader(self, limits: IngressLimits) -> Reader[Any]:
        """What reads its messages."""
        return Reader(GetMessageClass(self.method.input_type), self.max_bytes(limits), limits)

    def as_method(self) -> Method:
        """The method of the gateway's class."""
        make = _duplex if self.refusal else _streamed if self.method.server_streaming else _unary
        return make(self)


def _unary(rpc: Rpc) -> Method:
    empty = GetMessageClass(rpc.method.output_type)

    async def unary(self: Any, requests: RawRequests, grpc_context: GrpcContext) -> Message:
        door: Door = self.door
        call = door.begin(grpc_context, rpc.surface)
        try:
            answer: Message = await rpc.answer(call, await call.receive(rpc.method, requests))
            return answer
        except Exception as error:
            call.fail(error)
            return empty()
        finally:
            door.front.end(call.visit)

    return unary


def _streamed(rpc: Rpc) -> Method:
    async def streamed(self: Any, requests: RawRequests, grpc_context: GrpcContext) -> AsyncGenerator[Message, None]:
        door: Door = self.door
        call = door.begin(grpc_context, rpc.surface)
        try:
            message = await call.receive(rpc.method, requests)
            async with aclosing(rpc.answer(call, message)) as responses:
                async for response in responses:
                    yield response
        except Exception as error:
            call.fail(error)
        finally:
            door.front.end(call.visit)

    return streamed


def _duplex(rpc: Rpc) -> Method:
    """Each request of the stream is answered as a call of its own."""
    refusal = rpc.refusal
    assert refusal is not None

    async def duplex(self: Any, requests: RawRequests, grpc_context: GrpcContext) -> AsyncGenerator[Message, None]:
        door: Door = self.door
        call, reader = door.begin(grpc_context), door.readers[rpc.method.full_name]

        async def answer(data: bytes) -> Message:
            one = copy(call)
            one.visit = door.front.begin(rpc.surface, call.request_id, call.metadata.get("traceparent", ""))
            one.visit.tenant = call.tenant
            try:
                return await rpc.answer(one, reader.parse(data))  # type: ignore[no-any-return]
            except Exception as error:
                return refusal(reader.id_of(data), one.known(error))
            finally:
                door.front.end(one.visit)

        try:
            call.authenticate()
        except Exception as error:
            call.fail(error)
            return
        limits = door.front.limits
        answers = answer_stream(requests, answer, limits.max_stream_in_flight, limits.max_body_bytes)
        async with aclosing(answers) as responses:
            async for response in responses:
                yield response

    return duplex
