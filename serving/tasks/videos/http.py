"""``/v1/videos``: clips as durable jobs (``serving.delivery.job.http``)."""

from __future__ import annotations

from typing import Final

from serving.delivery.job.http import CreatedJobHttp
from serving.domain import Surface
from serving.front.http.body import read_into
from serving.front.http.call import Call
from serving.front.http.multipart import FormReader
from serving.front.http.openapi import BINARY, form_schema, json_content
from serving.refusals import FIRST_FRAME
from serving.tasks.videos.body import document_from_form, form_rules, json_bounds, request_from_document
from serving.tasks.videos.first_frame import with_first_frame
from serving.tasks.videos.reply import video_to_json
from serving.tasks.videos.rules import VIDEOS, VideoRequest, admitted
from serving.tasks.videos.schemas import VideoAnswer, VideoBody


async def read_request(call: Call) -> VideoRequest:
    """Read and parse the body. Raises: ClientError."""
    limits, files = call.front.limits, list[bytes]()
    if call.media_type("application/json", "multipart/form-data") == "application/json":
        document = await call.read_json(json_bounds(limits))
    else:
        reader = FormReader(call.content_type, limits, form_rules(limits))
        await read_into(call.receive, call.headers, limits, reader.feed)
        form = reader.finish()
        document, files = document_from_form(form), form.files
    request = request_from_document(
        document,
        surface=call.surface,
        request_id=call.request_id,
        tenant=call.tenant,
        fallback=call.budget(),
        idempotency_key=call.header(b"idempotency-key") or "",
        limits=limits,
    )
    text = request.asked.input_reference
    assert text is None or isinstance(text, str), "as it was unwrapped"
    return admitted(call, await with_first_frame(request, limits, file=files[0] if files else None, text=text))


_FORM: Final = form_schema(VideoBody)
_FORM["properties"][FIRST_FRAME] = {**BINARY["schema"], "description": "The picture that the clip begins with."}

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
    body={**json_content(VideoBody), "multipart/form-data": {"schema": _FORM}},
    answer=VideoAnswer,
).routes()
