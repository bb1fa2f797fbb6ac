"""``vireo.v1.Vireo/GenerateVideo``: one server stream per clip."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import grpc
from vireo_pb.vireo.v1 import vireo_pb2

from loadtest.clients.base import Payload, Prepared, Reply
from loadtest.clients.grpc_base import GrpcCallClient, GrpcChannel
from loadtest.clients.grpc_classify import budget_to_proto, report_from_proto, set_settings
from loadtest.clients.outcomes import Answer, WrongAnswer
from loadtest.records import Outcome

_PATH = "/vireo.v1.Vireo/GenerateVideo"


class GrpcVideosClient(GrpcCallClient):
    """Progress as it comes, then the file, then the end."""

    def _bind(self, channel: GrpcChannel) -> Any:
        return channel.server_stream(_PATH, vireo_pb2.GenerateVideoResponse.FromString)

    def prepare(self, payload: Payload) -> Prepared:
        """The serialised request. Raises: ValueError: the payload asks for no clip."""
        filming = payload.filming
        if filming is None:
            raise ValueError("a payload of videos needs a filming")
        request = vireo_pb2.GenerateVideoRequest(model=payload.model, prompt=filming.prompt, seed=filming.seed)
        if filming.size is not None:
            request.width, request.height = map(int, filming.size.split("x"))
        if filming.num_frames is not None:
            request.num_frames = filming.num_frames
        if payload.images:
            request.image = payload.images[0]
        if payload.budget is not None:
            request.vireo.CopyFrom(budget_to_proto(payload.budget))
        set_settings(request.vireo, filming.settings)
        wire = request.SerializeToString()
        return Prepared(payload=payload, wire=wire, request_bytes=len(wire))

    async def send(self, prepared: Prepared) -> Reply:
        """Call and read to the end; every failure of the target is a ``Reply``. Cancelling cancels the call, and with
        it the job."""
        num_bytes, clip_bytes, first_s, end = 0, 0, None, None
        call = self._call(prepared.wire, metadata=self._channel.metadata(prepared.payload.tenant))
        try:
            async for response in call:
                num_bytes += response.ByteSize()
                if response.HasField("content"):
                    clip_bytes += len(response.content.data)
                    first_s = first_s or self._channel.now_s()
                elif response.HasField("end"):
                    end = response.end
        except grpc.aio.AioRpcError as error:
            return self._channel.failed(error)
        finally:
            call.cancel()
        reply = self._channel.answered(lambda: _read(end, clip_bytes), num_bytes)
        return reply if first_s is None else replace(reply, first_chunk_at_s=first_s)


def _read(end: Any, clip_bytes: int) -> Answer:
    """Raises: WrongAnswer: no end, or not the whole file before it."""
    if end is None:
        raise WrongAnswer("the stream ended without its end")
    if not clip_bytes or clip_bytes != end.num_bytes:
        raise WrongAnswer(f"{clip_bytes} of {end.num_bytes} bytes came")
    return Answer(outcome=Outcome.OK, server=report_from_proto(end.vireo))
