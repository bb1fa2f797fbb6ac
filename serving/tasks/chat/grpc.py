"""``vireo.v1.Vireo/Chat``, as a part of the gateway's class."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from vireo_pb.vireo.v1 import vireo_pb2

from serving.domain import Surface
from serving.front.front import Front, Visit
from serving.front.grpc.call import GrpcCall, GrpcContext
from serving.front.grpc.messages import RawRequests, Reader
from serving.tasks.chat.domain import ChatEnd, ChatRequest, FinishReason
from serving.tasks.chat.stream import EventQueue, joined
from serving.tasks.chat.wire import message_from_end, messages_from_delta, request_from_message
from serving.telemetry.events import OK


class ChatMethods:
    """Chat over gRPC. Whoever mixes it in calls ``__init__``."""

    def __init__(self, front: Front) -> None:
        self._grpc_front = front
        limits = front.limits
        self._chat_reader = Reader(vireo_pb2.ChatRequest, limits.max_message_bytes(has_pixels=False), limits)

    async def Chat(
        self, requests: RawRequests, grpc_context: GrpcContext
    ) -> AsyncGenerator[vireo_pb2.ChatResponse, None]:
        """``vireo.v1.Vireo/Chat``. A call that is cancelled, or whose deadline passes, frees what it holds at once."""
        call, front = GrpcCall(grpc_context), self._grpc_front
        visit = front.begin(Surface.GRPC_CHAT)
        try:
            call.authenticate(front)
            visit.tenant = call.tenant
            request = await self._parse(await self._chat_reader.only(requests), call)
            async with aclosing(_responses(request, front, visit)) as responses:
                async for response in responses:
                    yield response
        except Exception as error:
            known = call.known(error)
            visit.outcome = known.code
            call.fail(known)
        finally:
            front.end(visit)

    async def _parse(self, request: vireo_pb2.ChatRequest, call: GrpcCall) -> ChatRequest:
        front = self._grpc_front
        return await request_from_message(
            request,
            request_id=call.request_id,
            tenant=call.tenant,
            deadline_s=call.deadline_s(),
            limits=front.limits,
            may_use_logprobs=front.authenticator.may_use_logprobs(call.tenant),
        )


async def _responses(request: ChatRequest, front: Front, visit: Visit) -> AsyncGenerator[vireo_pb2.ChatResponse, None]:
    visit.model = front.chat_card(request.model).id
    reasons = [FinishReason.STOP] * request.sampling.n
    async with EventQueue(front.service.chat(request)) as queue:
        while True:
            for event in joined(await queue.take()):
                if isinstance(event, ChatEnd):
                    visit.outcome = OK
                    yield message_from_end(event, request.model, reasons)
                    return
                reasons[event.index] = event.finish_reason or reasons[event.index]
                for response in messages_from_delta(event):
                    yield response
