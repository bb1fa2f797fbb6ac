"""``vireo.v1.Vireo/GenerateImage``: one call per request."""

from __future__ import annotations

from typing import Any

import grpc
from vireo_pb.vireo.v1 import vireo_pb2

from loadtest.clients.base import Payload, Prepared, Reply
from loadtest.clients.grpc_base import GrpcCallClient, GrpcChannel
from loadtest.clients.grpc_classify import budget_to_proto, report_from_proto, set_settings
from loadtest.clients.outcomes import Answer, WrongAnswer
from loadtest.records import Outcome

_PATH = "/vireo.v1.Vireo/GenerateImage"


class GrpcImagesClient(GrpcCallClient):
    """The pictures come with the answer."""

    def _bind(self, channel: GrpcChannel) -> Any:
        return channel.unary(_PATH, vireo_pb2.ImageResponse.FromString)

    def prepare(self, payload: Payload) -> Prepared:
        """The serialised request. Raises: ValueError: the payload asks for no pictures."""
        drawing = payload.drawing
        if drawing is None:
            raise ValueError("a payload of pictures needs a drawing")
        request = vireo_pb2.GenerateImageRequest(
            model=payload.model, prompt=drawing.prompt, n=drawing.n, seed=drawing.seed, size=drawing.size or ""
        )
        if payload.budget is not None:
            request.vireo.CopyFrom(budget_to_proto(payload.budget))
        set_settings(request.vireo, drawing.settings)
        wire = request.SerializeToString()
        return Prepared(payload=payload, wire=wire, request_bytes=len(wire))

    async def send(self, prepared: Prepared) -> Reply:
        """Call and wait; every failure of the target is a ``Reply``."""
        payload = prepared.payload
        try:
            response = await self._call(prepared.wire, metadata=self._channel.metadata(payload.tenant))
        except grpc.aio.AioRpcError as error:
            return self._channel.failed(error)
        return self._channel.answered(lambda: _read(response, payload), response.ByteSize())


def _read(response: Any, payload: Payload) -> Answer:
    """Raises: WrongAnswer: not as many pictures as were asked for."""
    if len(response.images) != payload.num_images or not all(response.images):
        raise WrongAnswer(f"{len(response.images)} pictures of {payload.num_images}")
    return Answer(outcome=Outcome.OK, server=report_from_proto(response.vireo))
