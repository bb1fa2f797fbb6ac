"""``vireo.v1.Vireo/GenerateVideo``: messages to a request, a job to messages. The rules are HTTP's (``rules``)."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from vireo_pb.vireo.v1 import vireo_pb2

from serving.domain import Report, Surface
from serving.errors import InvalidRequest
from serving.front.budget import budget_from_message
from serving.front.grpc.call import GrpcCall
from serving.front.grpc.messages import message_from_report
from serving.front.grpc.registration import VIREO
from serving.front.grpc.rpc import Rpc
from serving.limits import IngressLimits
from serving.tasks.chat.reply import clean
from serving.tasks.videos.domain import Artefact, JobStatus, VideoFormat, VideoJob, VideoRequest, VideoUpdate, error_of
from serving.tasks.videos.rules import (
    artefact_of,
    cancel_for_good,
    check_video,
    default_model,
    join_sizes,
    parse_seconds,
    with_settings,
)
from serving.telemetry.events import OK

MAX_PIECE_BYTES = 1 << 20

_FORMATS = {
    vireo_pb2.VIDEO_FORMAT_UNSPECIFIED: VideoFormat.MP4,
    vireo_pb2.VIDEO_FORMAT_MP4: VideoFormat.MP4,
    vireo_pb2.VIDEO_FORMAT_GIF: VideoFormat.GIF,
}
_WIRE_FORMATS = {
    VideoFormat.MP4: vireo_pb2.VIDEO_FORMAT_MP4,
    VideoFormat.GIF: vireo_pb2.VIDEO_FORMAT_GIF,
}


async def generate_video(
    call: GrpcCall, message: vireo_pb2.GenerateVideoRequest
) -> AsyncGenerator[vireo_pb2.GenerateVideoResponse, None]:
    """``vireo.v1.Vireo/GenerateVideo``. A call that is cancelled cancels its job, unless it is detached."""
    videos = call.front.service.videos
    cards = videos.video_models()
    request = request_from_message(
        message,
        request_id=call.request_id,
        tenant=call.tenant,
        default_model=default_model(cards),
        limits=call.front.limits,
    )
    job = await videos.create_video(with_settings(call.front.admit(request, cards, call.visit)))
    try:
        yield message_accepted(job)
        async with aclosing(videos.watch_video(job.owner, job.id)) as updates:
            async for update in updates:
                job = update.job
                yield message_progress(update, time.time())
    except BaseException:  # GeneratorExit and cancellation among them: the caller is gone
        if not message.detach:
            await cancel_for_good(videos, job)
        raise
    if job.status is JobStatus.FAILED:
        raise error_of(job)
    artefact = artefact_of(job, "video")
    for start in range(0, artefact.num_bytes, MAX_PIECE_BYTES):
        end = min(artefact.num_bytes, start + MAX_PIECE_BYTES)
        yield message_content(await videos.read_artefact(artefact, start, end))
    call.visit.outcome = OK
    yield message_end(job, artefact)


def request_from_message(
    message: vireo_pb2.GenerateVideoRequest,
    *,
    request_id: str,
    tenant: str,
    default_model: str | None,
    limits: IngressLimits,
) -> VideoRequest:
    """Return the domain request. Raises: ClientError."""

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
    request = VideoRequest(
        request_id=request_id,
        surface=Surface.GRPC_VIDEO,
        tenant=tenant,
        model=message.model or default_model or "",
        prompt=message.prompt,
        negative_prompt=message.negative_prompt,
        width=width,
        height=height,
        num_frames=message.num_frames if given("num_frames") else None,
        seconds=parse_seconds(message.seconds) if given("seconds") else None,
        fps=message.fps if given("fps") else None,
        num_inference_steps=message.num_inference_steps if given("num_inference_steps") else None,
        guidance_scale=message.guidance_scale if given("guidance_scale") else None,
        seed=message.seed if given("seed") else None,
        sampler=message.sampler if given("sampler") else None,
        attention=message.attention if given("attention") else None,
        output_format=output_format,
        budget=budget_from_message(message.vireo),
        user=message.user,
        idempotency_key=message.idempotency_key,
    )
    return check_video(request, limits)


def message_accepted(job: VideoJob) -> vireo_pb2.GenerateVideoResponse:
    """Return the first message."""
    settings = job.settings
    chosen = vireo_pb2.VideoSettings(
        width=settings.width,
        height=settings.height,
        num_frames=settings.num_frames,
        fps=settings.fps,
        num_inference_steps=settings.num_steps,
        guidance_scale=settings.guidance_scale,
        seed=settings.seed,
        sampler=settings.sampler,
        attention=settings.attention,
        variant=settings.variant,
        output_format=_WIRE_FORMATS[VideoFormat(settings.output_format)],
    )
    accepted = vireo_pb2.VideoAccepted(
        id=job.id,
        model=job.model,
        operating_point=job.operating_point,
        settings=chosen,
        predicted_s=job.predicted_s,
        predicted_j=job.predicted_j,
    )
    return vireo_pb2.GenerateVideoResponse(accepted=accepted)


def message_progress(update: VideoUpdate, now_s: float) -> vireo_pb2.GenerateVideoResponse:
    """Return how far the job is; ``now_s`` is Unix time."""
    job, finish_at_s = update.job, update.finish_at_s
    progress = vireo_pb2.VideoProgress(
        stage=clean(job.stage),
        step=job.step,
        num_steps=job.settings.num_steps,
        percent=job.progress,
        remaining_s=None if finish_at_s is None else max(0.0, finish_at_s - now_s),
        preview=update.preview or b"",
    )
    return vireo_pb2.GenerateVideoResponse(progress=progress)


def message_content(data: bytes) -> vireo_pb2.GenerateVideoResponse:
    """Return a piece of the file."""
    return vireo_pb2.GenerateVideoResponse(content=vireo_pb2.VideoContent(data=data))


def message_end(job: VideoJob, artefact: Artefact) -> vireo_pb2.GenerateVideoResponse:
    """Return the last message."""
    end = vireo_pb2.VideoEnd(
        id=job.id,
        media_type=artefact.media_type,
        num_bytes=artefact.num_bytes,
        sha256=artefact.sha256,
        vireo=message_from_report(report_of(job)),
    )
    return vireo_pb2.GenerateVideoResponse(end=end)


def report_of(job: VideoJob) -> Report:
    """Return the report that every surface gives, of a job that is over."""
    report = job.report
    return Report(
        operating_point=job.operating_point,
        energy_j=report.get("energy_j", 0.0),
        energy_source=report.get("energy_source", "estimate"),
        queue_ms=report.get("queue_ms", 0.0),
        compute_ms=report.get("compute_ms", 0.0),
        cache=report.get("cache", "off"),
        degraded=tuple(report.get("degraded", ())),
        guard=dict(report.get("guard", {})),
    )


RPCS: Final = (
    Rpc(
        method=VIREO.methods_by_name["GenerateVideo"],
        answer=generate_video,
        surface=Surface.GRPC_VIDEO,
        max_bytes=lambda limits: limits.max_prompt_bytes,
    ),
)
