"""``/v1/videos``: clips as durable jobs (``serving.delivery.job.http``)."""

from __future__ import annotations

from typing import Final

from serving.delivery.job.base import JobRequest
from serving.delivery.job.http import CreatedJobHttp
from serving.domain import Surface
from serving.front.http.body import read_into
from serving.front.http.call import Call
from serving.front.http.multipart import FormReader
from serving.front.http.openapi import form_schema, json_content
from serving.tasks.videos.body import document_from_form, form_rules, json_bounds, request_from_document
from serving.tasks.videos.reply import video_to_json
from serving.tasks.videos.rules import VIDEOS, admitted
from serving.tasks.videos.schemas import VideoAnswer, VideoBody


async def read_request(call: Call) -> JobRequest[VideoBody]:
    """Read and parse the body. Raises: ClientError."""
    limits = call.front.limits
    if call.media_type("application/json", "multipart/form-data") == "application/json":
        document = await call.read_json(json_bounds(limits))
    else:
        reader = FormReader(call.content_type, limits, form_rules(limits))
        await read_into(call.receive, call.headers, limits, reader.feed)
        document = document_from_form(reader.finish())
    request = request_from_document(
        document,
        surface=call.surface,
        request_id=call.request_id,
        tenant=call.tenant,
        fallback=call.budget(),
        idempotency_key=call.header(b"idempotency-key") or "",
        limits=limits,
    )
    return admitted(call, request)


ROUTES: Final = CreatedJobHttp(
    path="/v1/videos",
    id="video",
    task=VIDEOS,
    service=lambda front: front.service.videos,
    read=read_request,
    show=video_to_json,
    files=("video", "thumbnail"),
    main_types=("video/mp4", "image/gif"),
    media_types=("video/mp4", "image/gif", "image/jpeg"),
    surface=Surface.HTTP_VIDEO,
    sync_surface=Surface.HTTP_VIDEO_SYNC,
    body={**json_content(VideoBody), "multipart/form-data": {"schema": form_schema(VideoBody)}},
    answer=VideoAnswer,
).routes()
