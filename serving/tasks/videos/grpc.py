"""``vireo.v1.Vireo/GenerateVideo``, as a part of the gateway's class."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from vireo_pb.vireo.v1 import vireo_pb2

from serving.domain import Surface
from serving.front.front import Front, Visit
from serving.front.grpc.call import GrpcCall, GrpcContext
from serving.front.grpc.messages import RawRequests, Reader
from serving.replica.video.failures import error_of
from serving.tasks.videos.content import artefact_of, cancel_for_good
from serving.tasks.videos.domain import JobStatus, VideoRequest
from serving.tasks.videos.wire import (
    message_accepted,
    message_content,
    message_end,
    message_progress,
    request_from_message,
)
from serving.telemetry.events import OK

MAX_PIECE_BYTES = 1 << 20

Responses = AsyncGenerator[vireo_pb2.GenerateVideoResponse, None]


class VideoMethods:
    """Video over gRPC. Whoever mixes it in calls ``__init__``."""

    def __init__(self, front: Front) -> None:
        self._grpc_front = front
        self._video_reader = Reader(vireo_pb2.GenerateVideoRequest, front.limits.max_prompt_bytes, front.limits)

    async def GenerateVideo(self, requests: RawRequests, grpc_context: GrpcContext) -> Responses:
        """``vireo.v1.Vireo/GenerateVideo``. A call that is cancelled cancels its job, unless it is detached."""
        call, front = GrpcCall(grpc_context), self._grpc_front
        visit = front.begin(Surface.GRPC_VIDEO)
        try:
            call.authenticate(front)
            visit.tenant = call.tenant
            request = await self._video_reader.only(requests)
            domain_request = request_from_message(
                request,
                request_id=call.request_id,
                tenant=call.tenant,
                default_model=front.default_video_model(),
                limits=front.limits,
            )
            responses = _responses(domain_request, front, visit, detach=request.detach)
            async with aclosing(responses):
                async for response in responses:
                    yield response
        except Exception as error:
            known = call.known(error)
            visit.outcome = known.code
            call.fail(known)
        finally:
            front.end(visit)


async def _responses(request: VideoRequest, front: Front, visit: Visit, *, detach: bool) -> Responses:
    visit.model = front.video_card(request.model).id
    job = await front.service.create_video(request)
    try:
        yield message_accepted(job)
        async with aclosing(front.service.watch_video(job.owner, job.id)) as updates:
            async for update in updates:
                job = update.job
                yield message_progress(update, time.time())
    except BaseException:  # GeneratorExit and cancellation among them: the caller is gone
        if not detach:
            await cancel_for_good(front, job)
        raise
    if job.status is JobStatus.FAILED:
        raise error_of(job)
    artefact = artefact_of(job, "video")
    for start in range(0, artefact.num_bytes, MAX_PIECE_BYTES):
        end = min(artefact.num_bytes, start + MAX_PIECE_BYTES)
        yield message_content(await front.service.read_artefact(artefact, start, end))
    visit.outcome = OK
    yield message_end(job, artefact)
