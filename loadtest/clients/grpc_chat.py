"""``vireo.v1.Vireo/Chat``: one server stream per request."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import grpc
from vireo_pb.vireo.v1 import vireo_pb2

from loadtest.clients.base import Payload, Prepared, Reply
from loadtest.clients.generated import Pieces
from loadtest.clients.grpc_base import GrpcCallClient, GrpcChannel
from loadtest.clients.grpc_classify import budget_to_proto, report_from_proto
from loadtest.clients.outcomes import Answer, WrongAnswer
from loadtest.records import Outcome

_PATH = "/vireo.v1.Vireo/Chat"
_REASONS = {vireo_pb2.FINISH_REASON_STOP: "stop", vireo_pb2.FINISH_REASON_LENGTH: "length"}


class GrpcChatClient(GrpcCallClient):
    """Deltas as they come, then the end."""

    def _bind(self, channel: GrpcChannel) -> Any:
        return channel.server_stream(_PATH, vireo_pb2.ChatResponse.FromString)

    def prepare(self, payload: Payload) -> Prepared:
        """The serialised request. Raises: ValueError: the payload asks nothing."""
        question = payload.question
        if question is None:
            raise ValueError("a chat payload needs a question")
        parts = [*(vireo_pb2.ChatPart(image=image) for image in payload.images), vireo_pb2.ChatPart(text=question.text)]
        request = vireo_pb2.ChatRequest(
            model=payload.model,
            messages=[vireo_pb2.ChatMessage(role=vireo_pb2.CHAT_ROLE_USER, parts=parts)],
            sampling=vireo_pb2.Sampling(max_tokens=question.max_tokens, temperature=question.temperature),
        )
        if payload.budget is not None:
            request.vireo.CopyFrom(budget_to_proto(payload.budget))
        wire = request.SerializeToString()
        return Prepared(payload=payload, wire=wire, request_bytes=len(wire))

    async def send(self, prepared: Prepared) -> Reply:
        """Call and read to the end; every failure of the target is a ``Reply``. Cancelling cancels the call."""
        pieces, num_bytes, end = Pieces(), 0, None
        call = self._call(prepared.wire, metadata=self._channel.metadata(prepared.payload.tenant))
        try:
            async for response in call:
                num_bytes += response.ByteSize()
                if response.HasField("delta"):
                    pieces.text(response.delta.index, response.delta.text, self._channel.now_s())
                else:
                    end = response.end
        except grpc.aio.AioRpcError as error:
            return self._channel.failed(error)
        finally:
            call.cancel()
        reply = self._channel.answered(lambda: _read(end, pieces), num_bytes)
        first_s = None if reply.generated is None else reply.generated.first_token_at_s
        return reply if first_s is None else replace(reply, first_chunk_at_s=first_s)


def _read(end: Any, pieces: Pieces) -> Answer:
    if end is None:
        raise WrongAnswer("the stream ended without its end")
    for index, reason in enumerate(end.finish_reasons):
        pieces.finish(index, _REASONS.get(reason, "unknown"))
    generated = pieces.generated(
        num_tokens=end.usage.completion_tokens,
        num_prompt_tokens=end.usage.prompt_tokens,
        num_image_tokens=end.usage.image_tokens,
        num_cached_tokens=end.usage.cached_tokens,
    )
    return Answer(outcome=Outcome.OK, generated=generated, server=report_from_proto(end.vireo))
