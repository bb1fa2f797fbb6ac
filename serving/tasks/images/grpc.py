"""The image RPCs of ``vireo.v1.Vireo``: from messages to ``ImagesAsked``, and back again."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Final, TypeAlias

from vireo_pb.vireo.v1 import vireo_pb2

from serving.delivery.job.grpc import message_from_update
from serving.domain import ImageInput, Surface
from serving.errors import InvalidRequest
from serving.front.budget import budget_from_message
from serving.front.front import check_integer, check_model
from serving.front.grpc.call import GrpcCall
from serving.front.grpc.messages import message_from_report
from serving.front.grpc.registration import VIREO
from serving.front.grpc.rpc import Rpc
from serving.tasks.images.jobs import Waited, answer, begin, progress
from serving.tasks.images.rules import ImageFormat, ImagesAsked, ImagesMade
from serving.tasks.images.schemas import MAX_SEED

_NO_JOB: Final = "a call without a body begins no job"
Message: TypeAlias = vireo_pb2.GenerateImageRequest | vireo_pb2.EditImageRequest
_FORMATS: Final[Mapping[int, ImageFormat]] = {
    vireo_pb2.IMAGE_FORMAT_UNSPECIFIED: "png",
    vireo_pb2.IMAGE_FORMAT_PNG: "png",
    vireo_pb2.IMAGE_FORMAT_JPEG: "jpeg",
    vireo_pb2.IMAGE_FORMAT_WEBP: "webp",
}


async def generate(call: GrpcCall, message: vireo_pb2.GenerateImageRequest) -> vireo_pb2.ImageResponse:
    """``vireo.v1.Vireo/GenerateImage``."""
    return await _made(call, _asked(call, message, None))


async def generate_stream(
    call: GrpcCall, message: vireo_pb2.GenerateImageRequest
) -> AsyncGenerator[vireo_pb2.GenerateImageEvent, None]:
    """``vireo.v1.Vireo/GenerateImageStream``."""
    begun = await begin(call, _asked(call, message, None))
    if isinstance(begun, ImagesMade):
        yield vireo_pb2.GenerateImageEvent(made=_response(begun))
        return
    assert isinstance(begun, Waited), _NO_JOB
    async with aclosing(progress(call, begun)) as updates:
        async for update in updates:
            if isinstance(update, ImagesMade):
                yield vireo_pb2.GenerateImageEvent(made=_response(update))
            else:
                yield vireo_pb2.GenerateImageEvent(progress=message_from_update(update, time.time()))


async def edit(call: GrpcCall, message: vireo_pb2.EditImageRequest) -> vireo_pb2.ImageResponse:
    """``vireo.v1.Vireo/EditImage``."""
    if not message.image:
        raise InvalidRequest("image is empty; send the bytes of a JPEG, PNG or WebP file", param="image")
    return await _made(call, _asked(call, message, ImageInput(encoded=message.image)))


async def _made(call: GrpcCall, asked: ImagesAsked) -> vireo_pb2.ImageResponse:
    made = await answer(call, asked)
    assert isinstance(made, ImagesMade), _NO_JOB
    return _response(made)


def _asked(call: GrpcCall, message: Message, image: ImageInput | None) -> ImagesAsked:
    if message.output_format not in _FORMATS:
        raise InvalidRequest(f"output_format is {message.output_format}, which is unknown", param="output_format")
    if message.HasField("output_compression") and message.output_compression > 100:
        raise InvalidRequest(
            f"output_compression is {message.output_compression}; it goes to 100", param="output_compression"
        )
    return ImagesAsked(
        model=check_model(message.model or None),
        prompt=message.prompt,
        negative_prompt=message.negative_prompt,
        image=image,
        count=message.n or 1,
        size=message.size or "auto",
        format=_FORMATS[message.output_format],
        compression=message.output_compression if message.HasField("output_compression") else None,
        seed=check_integer(message.seed, 0, MAX_SEED, "seed") if message.HasField("seed") else None,
        budget=budget_from_message(message.vireo),
        deadline_s=call.deadline_s(),
    )


def _response(made: ImagesMade) -> vireo_pb2.ImageResponse:
    return vireo_pb2.ImageResponse(
        model=made.model,
        created=int(time.time()),
        images=made.files,
        media_type=made.media_type,
        width=made.width,
        height=made.height,
        seeds=made.seeds,
        vireo=message_from_report(made.report),
    )


RPCS: Final = (
    Rpc(
        method=VIREO.methods_by_name["GenerateImage"],
        answer=generate,
        surface=Surface.GRPC_IMAGES,
        max_bytes=lambda limits: limits.max_prompt_bytes,
    ),
    Rpc(
        method=VIREO.methods_by_name["GenerateImageStream"],
        answer=generate_stream,
        surface=Surface.GRPC_IMAGES,
        max_bytes=lambda limits: limits.max_prompt_bytes,
    ),
    Rpc(
        method=VIREO.methods_by_name["EditImage"],
        answer=edit,
        surface=Surface.GRPC_IMAGES,
        max_bytes=lambda limits: limits.max_message_bytes(has_pixels=False),
    ),
)
