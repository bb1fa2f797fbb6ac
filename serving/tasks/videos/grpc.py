"""``vireo.v1.Vireo/GenerateVideo``: messages to a request, a job to messages. The rules are HTTP's (``rules``)."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final, cast

from vireo_pb.vireo.v1 import vireo_pb2

from models.contract import Value
from serving.delivery.job.base import cancel_for_good, report_of
from serving.delivery.job.grpc import message_from_update
from serving.domain import Surface
from serving.errors import InvalidRequest
from serving.front.budget import budget_from_message, message_from_setting
from serving.front.front import check_model
from serving.front.grpc.call import GrpcCall
from serving.front.grpc.messages import message_from_report
from serving.front.grpc.registration import VIREO
from serving.front.grpc.rpc import Rpc
from serving.limits import IngressLimits
from serving.stores.jobs.base import Artefact, JobRecord, JobStatus
from serving.tasks.videos.first_frame import with_first_frame
from serving.tasks.videos.reply import settings_of
from serving.tasks.videos.rules import VIDEOS, VideoRequest, admitted, check_video, join_sizes, parse_seconds
from serving.tasks.videos.schemas import KNOBS, VideoBody, VideoFormat
from serving.telemetry.events import OK

MAX_PIECE_BYTES = 1 << 20

_FORMATS: Final[dict[vireo_pb2.VideoFormat.ValueType, VideoFormat]] = {
    vireo_pb2.VIDEO_FORMAT_UNSPECIFIED: "mp4",
    vireo_pb2.VIDEO_FORMAT_MP4: "mp4",
    vireo_pb2.VIDEO_FORMAT_GIF: "gif",
}
_WIRE_FORMATS: Final[dict[VideoFormat, vireo_pb2.VideoFormat.ValueType]] = {
    "mp4": vireo_pb2.VIDEO_FORMAT_MP4,
    "gif": vireo_pb2.VIDEO_FORMAT_GIF,
}
_SETTINGS: Final = frozenset(vireo_pb2.VideoSettings.DESCRIPTOR.fields_by_name) - {"output_format", "settings"}
_OPTIONAL: Final = ("num_frames", "fps", "seed", *KNOBS)


async def generate_video(
    call: GrpcCall, message: vireo_pb2.GenerateVideoRequest
) -> AsyncGenerator[vireo_pb2.GenerateVideoResponse, None]:
    """``vireo.v1.Vireo/GenerateVideo``. A call that is cancelled cancels its job, unless it is detached."""
    videos = call.front.service.videos
    request = request_from_message(
        message,
        request_id=call.request_id,
        tenant=call.tenant,
        limits=call.front.limits,
    )
    file = message.image if message.HasField("image") else None
    text = message.image_url if message.HasField("image_url") else None
    request = await with_first_frame(request, call.front.limits, file=file, text=text)
    job = await videos.create(admitted(call, request))
    try:
        yield message_accepted(job)
        async with aclosing(videos.watch(job.owner, job.id)) as updates:
            async for update in updates:
                job = update.job
                yield vireo_pb2.GenerateVideoResponse(progress=message_from_update(update, time.time()))
    except BaseException:  # GeneratorExit and cancellation among them: the caller is gone
        if not message.detach:
            await cancel_for_good(videos, job)
        raise
    if job.status is JobStatus.FAILED:
        raise job.failure
    artefact = VIDEOS.artefact(job, VIDEOS.main)
    for start in range(0, artefact.num_bytes, MAX_PIECE_BYTES):
        end = min(artefact.num_bytes, start + MAX_PIECE_BYTES)
        yield message_content(await videos.read(artefact, start, end))
    call.visit.outcome = OK
    yield message_end(job, artefact)


def request_from_message(
    message: vireo_pb2.GenerateVideoRequest,
    *,
    request_id: str,
    tenant: str,
    limits: IngressLimits,
) -> VideoRequest:
    """Return the request, without its picture. Raises: ClientError."""

    def given(name: str) -> bool:
        return message.HasField(name)  # type: ignore[arg-type]

    output_format = _FORMATS.get(message.output_format)
    if output_format is None:
        raise InvalidRequest(
            f"output_format is {message.output_format}; it must be a value of the enumeration VideoFormat",
            param="output_format",
        )
    width, height = join_sizes(
        None, message.width if given("width") else None, message.height if given("height") else None
    )
    asked = VideoBody.model_construct(
        prompt=message.prompt,
        negative_prompt=message.negative_prompt,
        width=width,
        height=height,
        seconds=parse_seconds(message.seconds) if given("seconds") else None,
        output_format=output_format,
        user=message.user,
        **{name: getattr(message, name) for name in _OPTIONAL if given(name)},
    )
    request = VideoRequest(
        request_id=request_id,
        surface=Surface.GRPC_VIDEO,
        tenant=tenant,
        model=check_model(message.model or None),
        asked=asked,
        budget=budget_from_message(message.vireo),
        idempotency_key=message.idempotency_key,
    )
    return check_video(request, limits)


def message_accepted(job: JobRecord) -> vireo_pb2.GenerateVideoResponse:
    """Return the first message."""
    settings = settings_of(job)
    chosen = vireo_pb2.VideoSettings(output_format=_WIRE_FORMATS[settings["output_format"]])
    for name, value in settings.items():
        if name in _SETTINGS:
            setattr(chosen, name, value)
        elif name not in ("output_format", "negative_prompt"):
            chosen.settings[name].CopyFrom(message_from_setting(cast(Value, value)))
    accepted = vireo_pb2.VideoAccepted(
        id=job.id,
        model=job.model,
        operating_point=job.operating_point,
        settings=chosen,
        predicted_s=job.predicted_s,
        predicted_j=job.predicted_j,
    )
    return vireo_pb2.GenerateVideoResponse(accepted=accepted)


def message_content(data: bytes) -> vireo_pb2.GenerateVideoResponse:
    """Return a piece of the file."""
    return vireo_pb2.GenerateVideoResponse(content=vireo_pb2.VideoContent(data=data))


def message_end(job: JobRecord, artefact: Artefact) -> vireo_pb2.GenerateVideoResponse:
    """Return the last message."""
    end = vireo_pb2.VideoEnd(
        id=job.id,
        media_type=artefact.media_type,
        num_bytes=artefact.num_bytes,
        sha256=artefact.sha256,
        vireo=message_from_report(report_of(job)),
    )
    return vireo_pb2.GenerateVideoResponse(end=end)


RPCS: Final = (
    Rpc(
        method=VIREO.methods_by_name["GenerateVideo"],
        answer=generate_video,
        surface=Surface.GRPC_VIDEO,
        max_bytes=lambda limits: limits.max_message_bytes(has_pixels=False),
    ),
)
